"""``ctc_distillation``: a fine-tuned full model teaches the reduced one."""

import os
from dataclasses import dataclass, field

import torch
from fairseq import utils
from fairseq.criterions import register_criterion
from omegaconf import II

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.console.relative_paths import looked_for
from fairseq_speedup.criterions.ctc_exits import CtcExitsCriterion, unwrapped
from fairseq_speedup.criterions.distillation import (
    TARGETS,
    DistillationConfig,
    DistillationCriterion,
    HeadFrames,
    head_input,
    log_distance,
)
from fairseq_speedup.data.dictionary import difference
from fairseq_speedup.models.loading import load_finetuned


@dataclass
class CtcDistillationConfig(DistillationConfig):
    teacher_path: str = field(
        default=II("model.w2v_path"),
        metadata={
            "help": "fine-tuned checkpoint, of the same labels where posteriors are learned; what "
            "training starts from by default"
        },
    )
    distillation_target: str = field(
        default="hidden",
        metadata={
            "help": "what the model learns from the teacher: hidden (states before the head, of "
            "one width) or posteriors (of CTC)"
        },
    )


@register_criterion("ctc_distillation", dataclass=CtcDistillationConfig)
class CtcDistillationCriterion(DistillationCriterion):
    """CTC, with the losses of exits if there are any, plus in training the distance from what a
    teacher, a model of its own, gives for the same audio."""

    def __init__(self, cfg: CtcDistillationConfig, task):
        super().__init__(cfg, task)
        # in a tuple: no parameters of the criterion, which fairseq would train and save
        target = TARGETS.lookup(cfg.distillation_target)
        self.teacher = (_load_teacher(cfg.teacher_path, task, target.of_labels),)
        if target.of_one_width:
            _check_width(cfg, self.teacher[0], task)

    def forward(self, model, sample, reduce=True, **kwargs):
        if not model.training:
            return super().forward(model, sample, reduce, **kwargs)
        with head_input(unwrapped(model)) as hidden:
            output = model(**sample["net_input"])
        ours = HeadFrames(output, hidden[0], self.blank_idx)
        loss, sample_size, log = self.losses(model, output, sample)
        distance = self.distance(ours, self._teacher_frames(sample["net_input"], ours.logits))
        loss = loss + self.distillation_weight * distance
        log["loss"] = utils.item(loss.data)
        log["loss_teacher"] = utils.item(distance.data)
        log["teacher_frames"] = int(ours.lengths.sum())
        return loss, sample_size, log

    @torch.no_grad()
    def _teacher_frames(self, net_input: dict, like: torch.Tensor) -> HeadFrames:
        (teacher,) = self.teacher
        teacher.to(device=like.device, dtype=net_input["source"].dtype)
        with head_input(teacher) as hidden:
            output = teacher(**net_input)
        return HeadFrames(output, hidden[0], self.blank_idx)

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        CtcExitsCriterion.reduce_metrics(logging_outputs)
        log_distance(logging_outputs, "loss_teacher", "teacher_frames")


def _check_width(cfg: CtcDistillationConfig, teacher, task) -> None:
    """Raises ValueError for a teacher whose frames are of another width than the model's."""
    ours, theirs = task.frame_dim, teacher.w2v_encoder.w2v_model.encoder.embedding_dim
    if ours is not None and ours != theirs:
        raise ValueError(
            f"criterion.distillation_target={cfg.distillation_target} needs a teacher whose frames "
            f"are as wide as the model's {ours}; those of criterion.teacher_path="
            f"{cfg.teacher_path} have {theirs}: give +criterion.distillation_target=posteriors"
        )


def _load_teacher(path: str, task, of_labels: bool = True):
    """
    Args:
        of_labels: its labels have to be the data's
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
    if of_labels and ours != theirs:
        raise CheckpointError(
            f"criterion.teacher_path={path} was fine-tuned with other labels than the data's: "
            f"{difference(ours, theirs)}; distillation_target=hidden asks for no labels"
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
