"""What a checkpoint is, as plain values: nothing in it is run."""

import os

import numpy as np
import torch
from fairseq import models
from fairseq.data import Dictionary
from omegaconf import DictConfig, OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

from fairseq_speedup.checkpoints.configs import evaluate
from fairseq_speedup.checkpoints.folders import CONFIG
from fairseq_speedup.checkpoints.opening import (
    EXPORTED_ENDINGS,
    SAFETENSORS,
    CheckpointError,
    clear_layout_errors,
    distrusting,
    unpickle,
    without_code,
)
from fairseq_speedup.checkpoints.pickles import format_of, refused_types, types_asked_for
from fairseq_speedup.config import SpeedupCtcConfig, switched_on
from fairseq_speedup.hugging_face.weights import (
    PRETRAINING_ONLY,
    pretraining_weights,
    weight_files,
)
from fairseq_speedup.low_rank.ranks import low_rank_of
from fairseq_speedup.macs import MacCounter, UncountableError
from fairseq_speedup.models.start import CNN_PREFIX
from fairseq_speedup.pretrained import Pretrained, check_weights, read_state
from fairseq_speedup.pretrained.families import FAMILIES
from fairseq_speedup.pretrained.finetuned import (
    ENCODER,
    FINETUNED_KINDS,
    HEAD,
    kind_of,
    upgrade,
    where_pretraining_is,
)
from fairseq_speedup.pretrained.pretraining import form_of
from fairseq_speedup.profiling.profile import Labels, random_model, stage_parameters
from fairseq_speedup.pruning.sizes import pruned_of
from fairseq_speedup.pruning.widths import widths_of
from fairseq_speedup.sampling import SAMPLE_RATE_HZ
from fairseq_speedup.transformer.reused_attention import reused_of

NUM_SYMBOLS = 10  # of a dictionary that are printed
NUM_LABELS = 5  # of the head that a pretrained model is given to be built, and not counted
DROPPED_PREFIXES = (ENCODER, "student.", "student_model.")
FROM_MODEL = "checkpoint.finetune_from_model"
HUGGING_FACE = "Hugging Face: config.json"


def inspect_file(path: str, seconds: float = 10) -> dict:
    """What a checkpoint is, as plain values; ``error`` says why it cannot be used, or is None.

    Args:
        seconds: of audio, for the MACs
    """
    report: dict = {"file": path, "error": None, "safe": False}
    try:
        if path.endswith(EXPORTED_ENDINGS):
            raise CheckpointError(
                f"{path} is an exported file, which transcribe and fairseq-generate run; give the "
                "checkpoint that it was made of"
            )
        report |= _files(path)
        with distrusting():
            saved = unpickle(path)
            state = without_code(path, saved)
            report["safe"] = True
            with clear_layout_errors(path):
                report["era"] = HUGGING_FACE if os.path.isdir(path) else era_of(saved)
                kind = kind_of(state)
                finetuned = kind in FINETUNED_KINDS
                report |= (_finetuned if finetuned else _pretrained)(path, state, seconds)
            if os.path.isdir(path):
                with distrusting():
                    report |= _of_folder(path, report["use"])
    except (CheckpointError, OSError) as error:
        report["error"] = str(error)
    return report


def _files(path: str) -> dict:
    """What files a checkpoint is, as they are: nothing in them is run."""
    if not os.path.isdir(path):
        files = [path] if os.path.isfile(path) else []
    else:
        files = weight_files(path) if os.path.isfile(os.path.join(path, CONFIG)) else []
    if not files:
        return {}
    pickles = [file for file in files if not file.endswith(SAFETENSORS)]
    types = sorted({name for file in pickles for name in types_asked_for(file)})
    return {
        "bytes": sum(map(os.path.getsize, files)),
        "format": format_of(pickles[0]) if pickles else "safetensors",
        "types": types if pickles else None,
        "refused_types": refused_types(types),
    }


def _of_folder(path: str, use: str) -> dict:
    """What is otherwise with a folder in Hugging Face's form."""
    return {
        "use": use.replace(f", {FROM_MODEL}", ""),  # which fairseq takes from files alone
        "dropped": _counted(pretraining_weights(path), PRETRAINING_ONLY),
    }


def era_of(saved: dict) -> str:
    """How and where a checkpoint, as unpickled, has its config."""
    form = form_of(saved)
    if form is not None:
        return form.name
    cfg = saved.get("cfg")
    if cfg is None:
        return "before fairseq 1.0: args, a Namespace" if saved.get("args") is not None else "none"
    return "cfg, OmegaConf" if isinstance(cfg, DictConfig) else "cfg, a dict"


def _pretrained(path: str, state: dict, seconds: float) -> dict:
    found = read_state(path, state)
    cfg, use = OmegaConf.structured(SpeedupCtcConfig), "model.w2v_path, with "
    if not any(name.startswith(CNN_PREFIX) for name in found.weights):
        cfg.frontend, use = "fbank", f"{use}model.frontend=fbank as its CNN is missing and "
    with FakeTensorMode():
        model = random_model(found.cfg, NUM_LABELS, cfg)
    check_weights(model.w2v_encoder.w2v_model, found.weights, path)
    head = sum(p.numel() for p in model.w2v_encoder.proj.parameters())
    costs = _costs(model, seconds)
    costs["parameters"] -= head
    for by_stage in (costs["parameters_by_stage"], costs["macs_per_second_by_stage"] or {}):
        by_stage.pop("head", None)
    form = form_of(state)
    weights = state["model" if form is None else form.weights]
    return {
        "family": found.family,
        "stage": "pretrained",
        "use": f"{use}task.normalize={str(found.cfg.task.normalize).lower()}",
        **_architecture(found.cfg),
        **costs,
        "dropped": _dropped(found, weights),
    }


def _finetuned(path: str, state: dict, seconds: float) -> dict:
    where, before = where_pretraining_is(state), state["model"]
    encoder = upgrade(path, state)
    cfg = state["cfg"]
    dictionary = (state.get("task_state") or {}).get("target_dictionary")
    symbols = dictionary.symbols if isinstance(dictionary, Dictionary) else None
    num_labels = len(symbols) if symbols else _head_size(path, before, cfg.model)
    with FakeTensorMode():
        model = models.build_model(cfg.model, Labels(num_labels), from_checkpoint=True)
    check_weights(model, state["model"], path)
    use = f"fairseq-generate --path, {FROM_MODEL}"
    has_gates = cfg.model.get("prune_target", 1) < 1
    return {
        "family": encoder.family,
        "stage": "fine-tuned",
        "use": f"{use}, prune" if has_gates else f"{use}, model.w2v_path",
        "kind": kind_of({"cfg": cfg}),
        "reductions": switched_on(cfg.model),
        "pretraining_config": where,
        **_architecture(cfg.model.w2v_args),
        "dictionary_size": num_labels,
        "first_symbols": symbols[:NUM_SYMBOLS] if symbols else None,
        **_costs(model, seconds),
        "dropped": _dropped(encoder, before),
    }


def _head_size(path: str, weights: dict, model_cfg) -> int:
    """Symbols of the dictionary, told by the last linear layer of the head."""
    linear = [w for n, w in weights.items() if n.startswith(HEAD) and n.endswith("weight")]
    if not linear:
        raise CheckpointError(f"{path} has neither a dictionary nor weights under {HEAD}")
    return linear[-1].size(0) // model_cfg.get("logit_upsample", 1)


def _architecture(pretraining) -> dict:
    """Of the config of a pretraining."""
    model = pretraining.model
    layers = evaluate(model.conv_feature_layers, "conv_feature_layers")
    return {
        "layers": model.encoder_layers,
        "layer_type": model.layer_type,
        "width": model.encoder_embed_dim,
        "feed_forward": model.encoder_ffn_embed_dim,
        "heads": model.encoder_attention_heads,
        "cnn": [list(layer) for layer in layers],
        "frame_samples": int(np.prod([stride for _, _, stride in layers])),
        "cnn_norm": model.extractor_mode,
        "layer_norm_first": model.layer_norm_first,
        "normalize": pretraining.task.normalize,
        "pruned": pruned_of(pretraining),
        "low_rank": low_rank_of(pretraining),
        "widths": [[each.width, each.share] for each in widths_of(pretraining).values()],
        "reused_attention": reused_of(pretraining),
    }


def _costs(model, seconds: float) -> dict:
    """Parameters, and MACs per second of audio or why they are not known."""
    costs = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_by_stage": stage_parameters(model),
        "macs_seconds": seconds,
    }
    try:
        macs = MacCounter(model).count([round(seconds * SAMPLE_RATE_HZ)]).sum().as_dict()
    except UncountableError as error:
        return costs | {"macs_per_second_by_stage": None, "macs_unknown": str(error)}
    return costs | {"macs_per_second_by_stage": {k: v / seconds for k, v in macs.items()}}


def _dropped(pretrained: Pretrained, weights: dict) -> list[dict]:
    """Modules that only pretraining needs, with their counts."""
    dropped = {}
    for name, weight in weights.items():
        for prefix in DROPPED_PREFIXES:
            name = name.removeprefix(prefix)
        if name in pretrained.dropped:
            dropped[name] = weight
    return _counted(dropped, FAMILIES[pretrained.family].dropped)


def _counted(weights: dict, prefixes: tuple[str, ...]) -> list[dict]:
    """Modules, each with the prefix of its weights' names, and their counts."""
    found: dict = {}
    for name, weight in weights.items():
        module = next(prefix for prefix in prefixes if name.startswith(prefix)).rstrip(".")
        counts = found.setdefault(module, {"tensors": 0, "parameters": 0})
        # data2vec's exponential moving average is a dict
        for tensor in weight.values() if isinstance(weight, dict) else [weight]:
            if isinstance(tensor, torch.Tensor):
                counts["tensors"] += 1
                counts["parameters"] += tensor.numel()
    return [{"module": module, **counts} for module, counts in found.items()]
