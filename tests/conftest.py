"""Small models and corpora in fairseq's formats, made on the spot."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq import options as fairseq_options
from fairseq.data import Dictionary
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecCtc
from fairseq.tasks.audio_pretraining import AudioPretrainingTask
from fairseq_cli.generate import main as fairseq_generate
from hypothesis import settings
from omegaconf import OmegaConf

import fairseq_speedup
from fairseq_speedup.architectures import pretraining_config
from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.models import SpeedupCtc, SpeedupCtcConfig

settings.register_profile("ci", derandomize=True)  # the same examples on every run
if os.environ.get("CI"):
    settings.load_profile("ci")
torch.set_num_threads(1)  # models are tiny: more threads only wait for each other

REPO = Path(__file__).parents[1]
USER_DIR = Path(fairseq_speedup.__file__).parent
SAMPLE_RATE = 16000
BLANK = 0
LETTERS = ["|", "E", "T", "A", "O", "N", "I", "H", "S", "R"]

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


def write_pretrained(path: Path, normalize: bool = True, seed: int = 0, **options) -> Path:
    """A randomly initialised wav2vec 2.0 in the form of fairseq's pretraining checkpoints."""
    torch.manual_seed(seed)
    cfg = pretraining_config(normalize, **(TINY | {"extractor_mode": "layer_norm"} | options))
    model = AudioPretrainingTask.setup_task(cfg.task).build_model(cfg.model)
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, enum_to_str=True),
        "model": model.state_dict(),
        "optimizer_history": [
            {
                "criterion_name": "Wav2vecCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 1,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    torch.save(state, path)
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
    model_cfg = OmegaConf.to_container(model.cfg, enum_to_str=True)
    task = {"_name": "speedup_finetuning", "data": "", "labels": labels, "normalize": True}
    state = {
        "args": None,
        "cfg": {
            "task": task,
            "model": model_cfg | {"_name": "wav2vec_ctc" if stock else "speedup_ctc"},
            "criterion": {"_name": "ctc"},
        },
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
        "task_state": {"target_dictionary": dictionary},
    }
    torch.save(state, path)
    return path


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


def batch_of(counts: list[int], seed: int = 0) -> dict:
    """``net_input`` of random utterances of ``counts`` samples, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(len(counts), max(counts), generator=generator)
    padding_mask = padding_mask_of(torch.tensor(counts), max(counts))
    return {"source": source.masked_fill(padding_mask, 0), "padding_mask": padding_mask}


def tones(word_symbols: list[str], rng: np.random.Generator) -> np.ndarray:
    """A waveform that says its symbols: each a tone of its own, 60 to 100 ms long."""
    pieces = []
    for symbol in word_symbols:
        num_samples = int(rng.integers(960, 1600))
        frequency_hz = 200 * (2 + LETTERS.index(symbol))
        time_seconds = np.arange(num_samples) / SAMPLE_RATE
        pieces.append(0.3 * np.sin(2 * np.pi * frequency_hz * time_seconds))
    waveform = np.concatenate(pieces)
    return (waveform + 0.01 * rng.standard_normal(len(waveform))).astype(np.float32)


def write_split(folder: Path, split: str, num_utterances: int, seed: int = 0) -> None:
    """``split`` in ``folder``: audio, ``.tsv``, ``.ltr``."""
    rng = np.random.default_rng(seed)
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    rows, labels = [], []
    for index in range(num_utterances):
        symbols = []
        for _ in range(int(rng.integers(2, 5))):
            symbols += [*rng.choice(LETTERS[1:], size=int(rng.integers(1, 4))), "|"]
        waveform = tones(symbols, rng)
        name = f"{split}-{index}.wav"
        soundfile.write(audio / name, waveform, SAMPLE_RATE)
        rows.append(f"{name}\t{len(waveform)}")
        labels.append(" ".join(symbols))
    (folder / f"{split}.tsv").write_text("\n".join([str(audio), *rows]) + "\n")
    (folder / f"{split}.ltr").write_text("\n".join(labels) + "\n")


def write_unbounded(folder: Path) -> None:
    """Takes the boundary between words out of the label files of ``folder``."""
    for path in folder.glob("*.ltr"):
        path.write_text(path.read_text().replace(" |", ""))


def write_dictionary(folder: Path, symbols=tuple(LETTERS)) -> Dictionary:
    path = folder / "dict.ltr.txt"
    path.write_text("".join(f"{symbol} {10 - i}\n" for i, symbol in enumerate(symbols)))
    return Dictionary.load(str(path))


def run_command(*command, cwd=None, check=True, env=None) -> subprocess.CompletedProcess:
    """Runs a command as a user would; its output is in the error when it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        raise AssertionError(f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def generate_here(data: Path, checkpoint: Path, results: Path | None = None, *options):
    """As :func:`generate`, in this process: quicker, and raises what fairseq-generate dies of."""
    arguments = [data, "--user-dir", USER_DIR, "--task", "speedup_finetuning", "--cpu"]
    arguments += [
        "--path",
        checkpoint,
        "--gen-subset",
        "test",
        "--labels",
        "ltr",
        "--scoring",
        "wer",
    ]
    arguments += ["--post-process", "letter", "--num-workers", "0", "--no-progress-bar"]
    arguments += ["--results-path", results] if results else []
    parser = fairseq_options.get_generation_parser()
    parser.add_argument("--arch", default="wav2vec2")  # as fairseq-generate itself
    args = fairseq_options.parse_args_and_arch(
        parser, [str(each) for each in [*arguments, *options]]
    )
    return fairseq_generate(args)


def fairseq_command(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def train(folder: Path, data: Path, w2v_path: Path, *overrides, check=True):
    """``fairseq-hydra-train`` on CPU, a few updates, outputs in ``folder``."""
    return run_command(
        fairseq_command("fairseq-hydra-train"),
        "--config-dir",
        REPO / "config/finetuning",
        "--config-name",
        "base_100h",
        f"common.user_dir={USER_DIR}",
        "common.cpu=true",
        "common.fp16=false",
        "common.log_interval=1",
        f"task.data={data}",
        "task.normalize=true",
        f"model.w2v_path={w2v_path}",
        "model.apply_mask=false",
        "model.mask_channel_prob=0",
        "model.layerdrop=0",
        "dataset.valid_subset=valid",
        "dataset.num_workers=0",
        "dataset.max_tokens=60000",
        "distributed_training.distributed_world_size=1",
        "optimization.update_freq=[1]",
        "optimization.max_update=4",
        f"hydra.run.dir={folder}",
        f"checkpoint.save_dir={folder}/checkpoints",
        *overrides,
        check=check,
    )


def generate(data: Path, checkpoint: Path, results: Path | None = None, *options, check=True):
    """Stock ``fairseq-generate`` with this plugin."""
    return run_command(
        fairseq_command("fairseq-generate"),
        data,
        "--user-dir",
        USER_DIR,
        "--task",
        "speedup_finetuning",
        "--path",
        checkpoint,
        "--gen-subset",
        "test",
        "--labels",
        "ltr",
        "--scoring",
        "wer",
        "--post-process",
        "letter",
        "--cpu",
        *(["--results-path", results] if results else []),
        *options,
        check=check,
    )


@pytest.fixture
def parity(record_property):
    """``assert_close`` with another implementation's numbers; families_table.py tells the largest
    difference."""
    largest = 0.0

    def check(found, expected, atol=1e-4, rtol=1e-4):
        nonlocal largest
        largest = max(largest, (found - expected).abs().max().item())
        torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)

    yield check
    record_property("difference", largest)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, num_utterances in [("train", 13), ("valid", 5), ("test", 11)]:
        write_split(folder, split, num_utterances, seed=len(split))
    write_dictionary(folder)
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("pretrained") / "tiny.pt")
