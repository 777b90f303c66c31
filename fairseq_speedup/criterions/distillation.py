"""What one model learns from another, or from itself at another speed: the distance from what the
other gives for the same audio."""

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.logging import metrics

from fairseq_speedup.criterions.ctc_exits import CtcExitsConfig, CtcExitsCriterion
from fairseq_speedup.lengths import lengths_of, padding_mask_of
from fairseq_speedup.registry import Registry

TARGETS = Registry("criterion.distillation_target")


class Target(NamedTuple):
    """What can be learned from a teacher.

    Args:
        distance: of a model's HeadFrames from the teacher's, summed over valid frames
        weight: of it beside CTC, by default
        of_one_width: the teacher's frames must be as wide as the model's
        of_labels: the teacher's labels must be the model's
    """

    distance: Callable[["HeadFrames", "HeadFrames"], torch.Tensor]
    weight: float
    of_one_width: bool = False
    of_labels: bool = False


@dataclass
class DistillationConfig(CtcExitsConfig):
    distillation_weight: Optional[float] = field(  # noqa: UP045  fairseq reads it
        default=None,
        metadata={
            "help": "weight of the teacher's loss; CTC's is 1; by default 0.1 of posteriors, 1 of "
            "hidden"
        },
    )
    distillation_target: str = field(
        default="posteriors",
        metadata={
            "help": "what the model learns from the teacher: posteriors (of CTC) or hidden (states "
            "before the head, of the same width)"
        },
    )


class DistillationCriterion(CtcExitsCriterion):
    """CTC, with the losses of exits if there are any, and a weighted distance from a teacher. A
    frame of the model stands for the teacher's frames of the same stretch of time, found from both
    exact lengths, whatever the two frame rates.

    Attributes:
        distance: of a model's HeadFrames from the teacher's, summed over valid frames
    """

    def __init__(self, cfg: DistillationConfig, task):
        super().__init__(cfg, task)
        target = TARGETS.lookup(cfg.distillation_target)
        self.distance, weight = target.distance, target.weight
        if cfg.distillation_weight is not None:
            weight = cfg.distillation_weight
        if not 0 < weight < math.inf:
            raise ValueError(
                f"criterion.distillation_weight={weight} is out of range; it must be above 0"
            )
        self.distillation_weight = weight


def log_distance(logging_outputs, name: str, num_frames: str) -> None:
    """Logs the distance ``name`` per frame, where there were any."""
    frames = utils.item(sum(log.get(num_frames, 0) for log in logging_outputs))
    if frames:
        total = utils.item(sum(log.get(name, 0) for log in logging_outputs))
        metrics.log_scalar(name, total / frames, frames, round=4)


class HeadFrames:
    """What a model gave: logits (T, B, V), without ``blank_weight``, hidden states (T', B, C) and
    the valid counts (B,) of both. At padding nothing is read."""

    def __init__(self, output: dict, hidden: torch.Tensor, blank: int):
        self.blank = blank
        # a copy: fairseq's criterion writes the weight of the blank into the output
        self.logits = output["encoder_out"].float().clone()
        batch_first = output["encoder_out"].transpose(0, 1)  # T x B x V -> B x T x V
        self.lengths = lengths_of(output["padding_mask"], batch_first)
        self.hidden = hidden.float()
        # the head upsamples, by a whole number
        self.hidden_lengths = self.lengths // (self.logits.size(0) // hidden.size(0))

    def detached(self) -> "HeadFrames":
        """The same, of a teacher that learns nothing from being one."""
        frames = copy.copy(self)
        frames.logits, frames.hidden = self.logits.detach(), self.hidden.detach()
        return frames


def posterior_distance(ours: HeadFrames, teacher: HeadFrames) -> torch.Tensor:
    """Kullback-Leibler divergence from the teacher's posteriors, summed over valid frames. Of the
    teacher's frames in a stretch the one with the least blank counts: CTC's labels are peaks one
    frame wide, which a mean would drown in blank."""
    log_probs = F.log_softmax(teacher.logits, dim=-1)
    windows, valid = matching_frames(ours.lengths, teacher.lengths, ours.logits.size(0))
    blank = _gather(log_probs[:, :, teacher.blank, None], windows)[..., 0]  # (T, B, W)
    least = blank.masked_fill(~valid, torch.inf).argmin(dim=2, keepdim=True)
    frames = windows.gather(2, least)
    target = _gather(log_probs, frames)[:, :, 0]  # (T, B, V)
    distance = F.kl_div(
        F.log_softmax(ours.logits, dim=-1), target, reduction="none", log_target=True
    ).sum(dim=-1)
    return _sum_of_valid(distance, ours.lengths)


def hidden_distance(ours: HeadFrames, teacher: HeadFrames) -> torch.Tensor:
    """L1 distance plus one minus cosine similarity of hidden states, the teacher's averaged over a
    stretch, summed over valid frames."""
    lengths = ours.hidden_lengths
    windows, valid = matching_frames(lengths, teacher.hidden_lengths, ours.hidden.size(0))
    weights = valid.float() / valid.sum(dim=2, keepdim=True).clamp(min=1)
    target = (_gather(teacher.hidden, windows) * weights[..., None]).sum(dim=2)
    distance = (ours.hidden - target).abs().mean(dim=2)
    distance = distance + 1 - F.cosine_similarity(ours.hidden, target, dim=2)
    return _sum_of_valid(distance, lengths)


TARGETS.register("posteriors")(Target(posterior_distance, weight=0.1, of_labels=True))
TARGETS.register("hidden")(Target(hidden_distance, weight=1, of_one_width=True))


def matching_frames(lengths, teacher_lengths, num_frames: int):
    """For each frame, the teacher's frames that begin in the same stretch of time, one at least.

    Args:
        lengths, teacher_lengths: (B,), valid frames of the same utterances
        num_frames: T of the batch
    Returns:
        indices (T, B, W) of the teacher's frames, and which of them count, of the same shape
    """
    frame = torch.arange(num_frames, device=lengths.device)[:, None]
    frame = torch.minimum(frame, lengths - 1)
    start = frame * teacher_lengths // lengths  # (T, B)
    end = torch.maximum((frame + 1) * teacher_lengths // lengths, start + 1)
    offset = torch.arange(int((end - start).max()), device=lengths.device)
    windows = start[:, :, None] + offset
    valid = windows < end[:, :, None]
    return torch.minimum(windows, teacher_lengths[:, None] - 1), valid


def _gather(values: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """values (T', B, C) at frames (T, B, W) -> (T, B, W, C)"""
    utterances = torch.arange(values.size(1), device=values.device)[None, :, None]
    return values[frames, utterances]


def _sum_of_valid(distance: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    padding = padding_mask_of(lengths, distance.size(0)).T
    return distance.masked_fill(padding, 0).sum()


@contextlib.contextmanager
def head_input(model):
    """A list that gets what the CTC head of ``model`` is given."""
    seen = []
    hook = model.w2v_encoder.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()
