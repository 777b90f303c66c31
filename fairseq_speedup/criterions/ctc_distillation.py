"""``ctc_distillation``: a fine-tuned full model teaches the reduced one."""

import contextlib
import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.logging import metrics

from fairseq_speedup.checkpoints import CheckpointError
from fairseq_speedup.criterions.ctc_exits import CtcExitsConfig, CtcExitsCriterion, unwrapped
from fairseq_speedup.data.dictionary import difference
from fairseq_speedup.lengths import lengths_of, padding_mask_of
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.registry import Registry
from fairseq_speedup.relative_paths import looked_for

TARGETS = Registry("criterion.distillation_target")


@dataclass
class CtcDistillationConfig(CtcExitsConfig):
    teacher_path: str = field(
        default="", metadata={"help": "fine-tuned checkpoint with the same labels"}
    )
    distillation_weight: float = field(
        default=0.1, metadata={"help": "weight of the teacher's loss; CTC's is 1"}
    )
    distillation_target: str = field(
        default="posteriors",
        metadata={
            "help": "what the model learns from the teacher: posteriors (of CTC) or hidden (states "
            "before the head, of the same width)"
        },
    )


@register_criterion("ctc_distillation", dataclass=CtcDistillationConfig)
class CtcDistillationCriterion(CtcExitsCriterion):
    """CTC, with the losses of exits if there are any, plus in training the distance from what a
    teacher gives for the same audio. A frame of the model stands for the teacher's frames of the
    same stretch of time, found from both exact lengths, whatever the two frame rates."""

    def __init__(self, cfg: CtcDistillationConfig, task):
        super().__init__(cfg, task)
        self.distance = TARGETS.lookup(cfg.distillation_target)
        if not 0 < cfg.distillation_weight < float("inf"):
            raise ValueError(
                f"criterion.distillation_weight={cfg.distillation_weight} is out of range; it must "
                "be above 0"
            )
        self.distillation_weight = cfg.distillation_weight
        # in a tuple: no parameters of the criterion, which fairseq would train and save
        self.teacher = (_load_teacher(cfg.teacher_path, task),)

    def forward(self, model, sample, reduce=True, **kwargs):
        if not model.training:
            return super().forward(model, sample, reduce, **kwargs)
        with _head_input(unwrapped(model)) as hidden:
            output = model(**sample["net_input"])
        ours = _Frames(output, hidden[0], self.blank_idx)
        loss, sample_size, log = self.losses(model, output, sample)
        distance = self.distance(ours, self._teacher_frames(sample["net_input"], ours.logits))
        loss = loss + self.distillation_weight * distance
        log["loss"] = utils.item(loss.data)
        log["loss_teacher"] = utils.item(distance.data)
        log["teacher_frames"] = int(ours.lengths.sum())
        return loss, sample_size, log

    @torch.no_grad()
    def _teacher_frames(self, net_input: dict, like: torch.Tensor) -> "_Frames":
        (teacher,) = self.teacher
        teacher.to(device=like.device, dtype=net_input["source"].dtype)
        with _head_input(teacher) as hidden:
            output = teacher(**net_input)
        return _Frames(output, hidden[0], self.blank_idx)

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        CtcExitsCriterion.reduce_metrics(logging_outputs)
        num_frames = sum(log.get("teacher_frames", 0) for log in logging_outputs)
        if num_frames:
            total = sum(log.get("loss_teacher", 0) for log in logging_outputs)
            metrics.log_scalar("loss_teacher", total / num_frames, num_frames, round=4)


class _Frames:
    """What a model gave: logits (T, B, V), hidden states (T', B, C) and the valid counts (B,) of
    both. fairseq's criterion writes into the logits of a padded batch, hence the copy."""

    def __init__(self, output: dict, hidden: torch.Tensor, blank: int):
        self.blank = blank
        self.logits = output["encoder_out"].float()
        batch_first = output["encoder_out"].transpose(0, 1)  # T x B x V -> B x T x V
        self.lengths = lengths_of(output["padding_mask"], batch_first)
        self.hidden = hidden.float()
        # the head upsamples, by a whole number
        self.hidden_lengths = self.lengths // (self.logits.size(0) // hidden.size(0))


@TARGETS.register("posteriors")
def posterior_distance(ours: _Frames, teacher: _Frames) -> torch.Tensor:
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


@TARGETS.register("hidden")
def hidden_distance(ours: _Frames, teacher: _Frames) -> torch.Tensor:
    """L1 distance plus one minus cosine similarity of hidden states, the teacher's averaged over a
    stretch, summed over valid frames."""
    if ours.hidden.size(2) != teacher.hidden.size(2):
        raise ValueError(
            f"criterion.distillation_target=hidden needs hidden states of one width; the model has "
            f"{ours.hidden.size(2)} and the teacher {teacher.hidden.size(2)}: use posteriors"
        )
    lengths = ours.hidden_lengths
    windows, valid = matching_frames(lengths, teacher.hidden_lengths, ours.hidden.size(0))
    weights = valid.float() / valid.sum(dim=2, keepdim=True).clamp(min=1)
    target = (_gather(teacher.hidden, windows) * weights[..., None]).sum(dim=2)
    distance = (ours.hidden - target).abs().mean(dim=2)
    distance = distance + 1 - F.cosine_similarity(ours.hidden, target, dim=2)
    return _sum_of_valid(distance, lengths)


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
def _head_input(model):
    """A list that gets what the CTC head of ``model`` is given."""
    seen = []
    hook = model.w2v_encoder.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


def _load_teacher(path: str, task):
    """
    Raises:
        ValueError: no path
        CheckpointError: no fine-tuned CTC model, other labels or another normalisation
    """
    if not path:
        raise ValueError(
            "criterion.teacher_path is empty: ctc_distillation needs a fine-tuned checkpoint"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"criterion.teacher_path={path}: no such file, or no file{looked_for(path)}"
        )
    teacher, cfg, teacher_task = load_finetuned(path, "criterion.teacher_path=")
    ours, theirs = task.target_dictionary.symbols, teacher_task.target_dictionary.symbols
    if ours != theirs:
        raise CheckpointError(
            f"criterion.teacher_path={path} was fine-tuned with other labels than the data's: "
            f"{difference(ours, theirs)}"
        )
    if bool(cfg.task.normalize) != bool(task.cfg.normalize):
        raise CheckpointError(
            f"task.normalize={task.cfg.normalize} disagrees with criterion.teacher_path={path}; "
            f"set task.normalize={bool(cfg.task.normalize)}"
        )
    exits = getattr(teacher.w2v_encoder, "exit", None)
    if exits is not None:
        exits.criterion = None  # the teacher goes to its last layer
    return teacher.eval().requires_grad_(False)
