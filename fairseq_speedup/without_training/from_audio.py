"""What reductions from some minutes of audio share (``low-rank``, ``prune --target``): the model,
the audio in pieces, and how far the outputs move."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from fairseq_speedup.checkpoints.opening import state_without_training
from fairseq_speedup.console import progress
from fairseq_speedup.data.recording import RecordingError, read_recording
from fairseq_speedup.decoding.generator import batch_of
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.sampling import SAMPLE_RATE_HZ
from fairseq_speedup.tasks.speedup_finetuning import SpeedupFinetuningTask

PIECE_SECONDS = 30  # of a recording that the model is given at once
MACS_SECONDS = 10  # of the utterance whose MACs are told


def load_ours(path: str, overrides: dict):
    """A fine-tuned model as ``speedup_ctc``, whatever the checkpoint holds, its config and a
    task."""
    model, cfg, task = load_finetuned(path, "", overrides)
    if not isinstance(model.w2v_encoder, SpeedupEncoder):
        # an option of ours makes it one, without changing its numbers
        model, cfg, task = load_finetuned(path, "", {"padding": "stock", **overrides})
    return model.eval(), cfg, SpeedupFinetuningTask.around(model, cfg, task)


def config_of(model, cfg) -> DictConfig:
    """A copy of a whole config, with the options that the model has now."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, enum_to_str=True))
    cfg.model = OmegaConf.create(OmegaConf.to_container(model.cfg, enum_to_str=True))
    return cfg


def state_of(weights: dict, cfg: DictConfig, task) -> dict:
    """The checkpoint of these weights, of a model that was not trained so."""
    return state_without_training(
        {name: weight.cpu() for name, weight in weights.items()},
        cfg=OmegaConf.to_container(cfg),
        task_state={"target_dictionary": task.target_dictionary},
    )


@dataclass(frozen=True)
class AudioSource:
    """Where the audio is.

    data: folder with the split ``subset``, None for ``files``
    minutes: that are used, drawn from all
    leave_out: files that cannot be read, in place of ending with an error
    """

    data: str | None
    subset: str
    files: list[str]
    minutes: float
    leave_out: bool = False

    @property
    def overrides(self) -> dict:
        """That a model is loaded with."""
        return {} if self.data is None else {"data": self.data}

    def pieces(self, model, cfg, task) -> Iterator[torch.Tensor]:
        """Waveforms (S,) of PIECE_SECONDS at most, of recordings in random order, the same every
        time, until there are enough."""
        needed = model.w2v_encoder.needed_samples()
        num, read = self._recordings(cfg, task, needed)
        left = round(self.minutes * 60 * SAMPLE_RATE_HZ)
        for index in np.random.default_rng(0).permutation(num).tolist():
            try:
                waveform = read(index)
            except RecordingError:
                if not self.leave_out:
                    raise
                continue
            for piece in waveform.split(PIECE_SECONDS * SAMPLE_RATE_HZ):
                piece = piece[: max(left, needed)]
                if left > 0 and len(piece) >= needed:
                    left -= len(piece)
                    yield piece
            if left <= 0:
                return

    def _recordings(self, cfg, task: Any, needed: int):
        """Their number, and a function that reads one."""
        if self.data is not None:
            task.load_dataset(self.subset, task_cfg=cfg.task)
            dataset = task.dataset(self.subset)
            return len(dataset), lambda index: dataset[index]["source"]
        rate, normalize = task.cfg.sample_rate, bool(task.cfg.normalize)
        return len(
            self.files
        ), lambda index: read_recording(self.files[index], rate, normalize, needed).waveform


def macs_of(model) -> int:
    """Of an utterance of MACS_SECONDS."""
    return int(MacCounter(model).count([MACS_SECONDS * SAMPLE_RATE_HZ]).sum().total)


def num_parameters(model, without: str = "") -> int:
    """
    Args:
        without: those whose names hold this, if it is given
    """
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not without or without not in name
    )


def minutes_of(pieces) -> float:
    return sum(map(len, pieces)) / SAMPLE_RATE_HZ / 60


@torch.no_grad()
def log_probs(model, pieces, what: str) -> list[torch.Tensor]:
    """(T, V) of each piece."""
    device = next(model.parameters()).device
    found = []
    for piece in progress.bar(pieces, what, unit=" pieces"):
        logits = model(**batch_of([piece.to(device)]))["encoder_out"][:, 0]
        found.append(torch.log_softmax(logits.float(), dim=-1).cpu())
    return found


@dataclass
class Change:
    """Of log-probabilities: the largest and the mean, in nats, and the share of frames with another
    best label."""

    largest: float
    mean: float
    other_best: float

    @classmethod
    def of(cls, before, after) -> "Change":
        """From lists of what :func:`log_probs` gives."""
        old, new = torch.cat(before), torch.cat(after)
        difference = (new - old).abs()
        finite = torch.isfinite(old)  # symbols that are never given
        other = (old.argmax(dim=-1) != new.argmax(dim=-1)).float()
        difference = difference[finite]
        return cls(difference.max().item(), difference.mean().item(), other.mean().item())

    def described(self, pieces) -> str:
        return (
            f"on {minutes_of(pieces):.1f} minutes of audio log-probabilities change by at most "
            f"{self.largest:.2g} nats, {self.mean:.2g} on average; {100 * self.other_best:.2f} % "
            "of frames have another best label"
        )
