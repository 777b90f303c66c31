"""Small models and their checkpoints in fairseq's formats, made on the spot."""

import operator
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecCtc
from fairseq.tasks.audio_pretraining import AudioPretrainingTask
from omegaconf import OmegaConf

from fairseq_speedup.architectures import pretraining_config
from fairseq_speedup.checkpoints.opening import whole_config
from fairseq_speedup.lengths import lengths_of, padding_mask_of
from fairseq_speedup.models import (
    DistilledStudent,
    DistilledStudentConfig,
    SpeedupCtc,
    SpeedupCtcConfig,
)
from fairseq_speedup.models.lengths import model_lengths
from fairseq_speedup.pretrained.encoder import build_encoder
from fairseq_speedup.tasks import SpeedupFinetuningConfig, SpeedupFinetuningTask
from fairseq_speedup.transformer.early_exit import ExitCriterion

BLANK = 0


TINY = {
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2",
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "final_dim": 8,
    "quantize_targets": True,
    "latent_vars": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}

WITHOUT_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
ENCODER_SIZES = ("encoder_", "conv_")
WAVLM = {
    **{name: size for name, size in TINY.items() if name.startswith(ENCODER_SIZES)},
    "extractor_mode": "default",
}


def state_of(model: torch.nn.Module, cfg: dict | None) -> dict:
    """A checkpoint as fairseq's trainer writes it after one update, without the optimizer."""
    return {
        "args": None,
        "cfg": cfg,
        "model": model.state_dict(),
        "optimizer_history": [
            {
                "criterion_name": "CtcCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 1,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }


def finetuned_state(model, kind="wav2vec_ctc", task=None) -> dict:
    """The checkpoint of a fine-tuned model, without a dictionary."""
    cfg = OmegaConf.to_container(model.cfg, enum_to_str=True) | {"_name": kind}
    task = task or {
        "_name": "audio_finetuning",
        "normalize": True,
        "data": "",
        "labels": "ltr",
    }
    return state_of(model, {"model": cfg, "task": task})


def write_pretrained(path: Path, normalize: bool = True, seed: int = 0, **options) -> Path:
    """A randomly initialised wav2vec 2.0 in the form of fairseq's pretraining checkpoints."""
    torch.manual_seed(seed)
    cfg = pretraining_config(normalize, **(TINY | {"extractor_mode": "layer_norm"} | options))
    model = AudioPretrainingTask.setup_task(cfg.task).build_model(cfg.model)
    sections = OmegaConf.to_container(cfg, enum_to_str=True)
    state = state_of(model, whole_config(**sections))
    torch.save(state, path)
    return path


FRONT_ENDS = ["group_norm", "layer_norm"]  # of base models, and of large ones


def write_four_layers(path, front_end: str):
    """A pretrained model as base ones or large ones are, one of FRONT_ENDS."""
    large = front_end == "layer_norm"
    return write_pretrained(
        path,
        encoder_layers=4,
        extractor_mode="layer_norm" if large else "default",
        layer_norm_first=large,
        conv_bias=large,
    )


def write_wavlm(path: Path, **sizes) -> Path:
    """A WavLM in Microsoft's form, whose bias tables and gates are not all alike."""
    torch.manual_seed(3)
    positions = {"num_buckets": 16, "max_distance": 20, "gated": True}
    cfg = pretraining_config(True, **(WAVLM | sizes))
    cfg = OmegaConf.merge(
        cfg, {"encoder_variant": {"family": "wavlm", "relative_positions": positions}}
    )
    model = build_encoder(cfg)
    for name, weight in model.named_parameters():
        if "grep_a" in name or "relative_attention_bias" in name:
            torch.nn.init.normal_(weight)
    weights = model.state_dict()
    table = weights.pop("encoder.relative_attention_bias.weight")
    weights["encoder.layers.0.self_attn.relative_attention_bias.weight"] = table
    flat = OmegaConf.to_container(cfg.model, enum_to_str=True) | {
        "relative_position_embedding": True,
        "num_buckets": 16,
        "max_distance": 20,
        "gru_rel_pos": True,
        "normalize": True,
    }
    torch.save({"cfg": flat, "model": weights}, path)
    return path


def write_finetuned(
    path: Path, w2v_path: Path, dictionary: Dictionary, labels="ltr", stock=False, **options
):
    """A random fine-tuned model in the form of fairseq's checkpoints, which decodes to something:
    its labels vary from frame to frame."""
    symbols = dictionary.symbols[dictionary.nspecial :]
    model = build_model(w2v_path, stock, labels=symbols, num_labels=len(dictionary), **options)
    for head in model.w2v_encoder.modules():
        if isinstance(head, torch.nn.Linear) and head.out_features % len(dictionary) == 0:
            with torch.no_grad():
                head.weight.mul_(30)
                bias = head.bias.view(-1, len(dictionary))
                bias[:, BLANK] += 4
                bias[:, BLANK + 1 : dictionary.nspecial] -= 1000
    task = {"_name": "speedup_finetuning", "data": "", "labels": labels, "normalize": True}
    state = finetuned_state(model, "wav2vec_ctc" if stock else "speedup_ctc", task)
    state["cfg"]["criterion"] = {"_name": "ctc"}
    state["task_state"] = {"target_dictionary": dictionary}
    torch.save(state, path)
    return path


FAMILIES = {
    "base": {"extractor_mode": "default"},
    "large": {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True},
    "data2vec": {"extractor_mode": "layer_norm", "pos_conv_depth": 2},
    "wavlm": {},
}


def finetuned_families(folder: Path, dictionary: Dictionary, sizes: dict, change=None):
    """``of(kind, stock=False, **options)``: the path of a fine-tuned model of one of FAMILIES,
    written once.

    Args:
        change: called as ``change(weights, options)``, changes them in place
    """
    made: dict[str, Path] = {}

    def of(kind: str, stock=False, **options) -> Path:
        name = f"{kind}-{stock}-{options}"
        if name not in made:
            start = folder / f"{kind}.pt"
            if not start.exists():
                write = write_wavlm if kind == "wavlm" else write_pretrained
                write(start, **sizes, **FAMILIES[kind])
            made[name] = folder / f"{len(made)}-whole.pt"
            write_finetuned(made[name], start, dictionary, stock=stock, **options)
            if change is not None:
                state = torch.load(made[name], weights_only=False)
                change(state["model"], options)
                torch.save(state, made[name])
        return made[name]

    return of


def made_once(folder: Path, whole, make):
    """``of(kind, **options)``: what is made of a model of ``whole``, of :func:`finetuned_families`.

    Args:
        make: called as ``make(path, output, options)``
    """
    made: dict[Path, Path] = {}

    def of(kind: str, **options) -> Path:
        path = whole(kind, **options)
        if path not in made:
            made[path] = folder / path.name
            make(path, made[path], options)
        return made[path]

    return of


def load(path, **overrides):
    """The model of a checkpoint, as fairseq loads it."""
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides)
    return models[0].eval()


def write_without_dictionary(path: Path, w2v_path: Path, kind="wav2vec_ctc", **options) -> dict:
    """A random fine-tuned model, of which nobody is told the labels; returns what it wrote."""
    state = finetuned_state(build_model(w2v_path, **options), kind)
    torch.save(state, path)
    return state


class Labels:
    """Stands for the task when a model is built without one."""

    def __init__(self, num_labels: int = 14, symbols=()):
        self.target_dictionary = Dictionary()
        for symbol in symbols:
            self.target_dictionary.add_symbol(symbol)
        while len(self.target_dictionary) < num_labels:
            self.target_dictionary.add_symbol(f"label{len(self.target_dictionary)}")


def build_model(
    w2v_path: Path, stock: bool = False, seed: int = 1, labels=(), num_labels=14, **options
):
    """A fine-tuning model in eval mode; ``stock`` is fairseq's own."""
    config, model = (Wav2Vec2CtcConfig, Wav2VecCtc) if stock else (SpeedupCtcConfig, SpeedupCtc)
    cfg = OmegaConf.structured(config)
    given = {"w2v_path": str(w2v_path), "normalize": True, "data": "", "ddp_backend": "legacy_ddp"}
    for name, value in (given | options).items():
        cfg[name] = value
    torch.manual_seed(seed)
    return model.build_model(cfg, Labels(num_labels, labels)).eval()


def build_student(teacher: Path, **options) -> DistilledStudent:
    """A student of a pretrained model with 6 layers, without dropout."""
    cfg = OmegaConf.structured(DistilledStudentConfig)
    given = {"w2v_path": str(teacher), "normalize": True, "predict_layers": "3,6"}
    for name, value in (given | WITHOUT_DROPOUT | options).items():
        cfg[name] = value
    torch.manual_seed(1)
    return DistilledStudent.build_model(cfg, task=None)


def batch_of(counts: list[int], seed: int = 0) -> dict:
    """``net_input`` of random utterances of ``counts`` samples, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(len(counts), max(counts), generator=generator)
    padding_mask = padding_mask_of(torch.tensor(counts), max(counts))
    return {"source": source.masked_fill(padding_mask, 0), "padding_mask": padding_mask}


def task_of(data: Path, model=None, **options) -> SpeedupFinetuningTask:
    """The task for a folder of data; with ``model``'s lengths, as after building it."""
    cfg = OmegaConf.structured(
        SpeedupFinetuningConfig(data=str(data), labels="ltr", normalize=True, **options)
    )
    cfg.tpu = False
    task = SpeedupFinetuningTask.setup_task(cfg)
    if model is not None:
        task.lengths = model_lengths(model)
    return task


def let_longer_leave(model, num_samples: int) -> None:
    """Has utterances of more samples than these leave at the first exit."""

    def measure(*, lengths, **unused):
        return lengths

    encoder = model.w2v_encoder
    encoder.exit.criterion = ExitCriterion(measure, operator.gt)
    frames = encoder.frame_lengths(num_samples)
    encoder.exit.threshold = int(encoder.frame_reduction.output_lengths(frames))


@torch.no_grad()
def check_alone(model, net_input: dict, logits, layer_frames=None) -> None:
    """Each utterance of a batch gives alone what it gave in it: ``logits`` (T, B, V), and the
    frames that layers were given (B, layers)."""
    lengths = lengths_of(net_input["padding_mask"], net_input["source"]).tolist()
    for i, count in enumerate(lengths):
        alone = model(source=net_input["source"][i : i + 1, :count], padding_mask=None)
        expected = model.get_logits(alone)
        torch.testing.assert_close(logits[: len(expected), i], expected[:, 0], atol=1e-5, rtol=1e-4)
        if layer_frames is not None:
            assert alone["layer_frames"].tolist() == [layer_frames[i].tolist()]
