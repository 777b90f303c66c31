"""``gram_distillation``: how far what a student's frames are to each other is from what its
teacher's are, whatever the two widths."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass

from fairseq_speedup.criterions.layer_distillation import StudentCriterion
from fairseq_speedup.lengths import lengths_of


@dataclass
class GramDistillationConfig(FairseqDataclass):
    layer_weight: float = field(
        default=1.0,
        metadata={"help": "weight of what the frames that a layer gives are to each other"},
    )
    intra_weight: float = field(
        default=1.0,
        metadata={"help": "weight of what the frames that it gives are to those it is given"},
    )


@register_criterion("gram_distillation", dataclass=GramDistillationConfig)
class GramDistillationCriterion(StudentCriterion):
    """Mean squared distance of temporal Gram matrices (T, T), mean over the student's layers (STaR,
    arXiv 2312.09040): layer-wise, of what a layer gives, and intra-layer, between that and what it
    is given. Where a layer stands for several of the teacher's, these are the last one's and the
    first one's.

    No code of the paper's distillation is public. Here a matrix is divided by its width, and an
    utterance counts by its frames.
    """

    def __init__(self, cfg: GramDistillationConfig, task):
        super().__init__(task)
        given = {name: getattr(cfg, f"{name}_weight") for name in ("layer", "intra")}
        for name, weight in given.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(
                    f"criterion.{name}_weight={weight} is out of range; it must be 0 or more"
                )
        self.weights = {name: weight for name, weight in given.items() if weight}
        if not self.weights:
            raise ValueError(
                "criterion.layer_weight=0 and criterion.intra_weight=0 leave nothing to learn; one "
                "must be above 0"
            )

    def forward(self, model, sample, reduce=True):
        output = model(**sample["net_input"])
        if "student_layers" not in output:
            raise ValueError(
                "criterion._name=gram_distillation predicts no layers, it matches them: give "
                "model.predict_layers=none"
            )
        padding_mask = output["padding_mask"]
        lengths = lengths_of(padding_mask, output["student_layers"][0])
        ours, theirs = (
            [_without_padding(each, padding_mask) for each in output[f"{whose}_layers"]]
            for whose in ("student", "teacher")
        )
        distances = dict.fromkeys(self.weights, lengths.new_zeros((), dtype=torch.float))
        for (given, found), (their_given, their_found) in zip(
            pairwise(ours), pairwise(theirs), strict=True
        ):
            pairs = {
                "layer": ((found, found), (their_found, their_found)),
                "intra": ((given, found), (their_given, their_found)),
            }
            for name in self.weights:
                distance = gram_distance(*pairs[name], lengths)
                distances[name] = distances[name] + distance / (len(ours) - 1)
        loss = sum(weight * distances[name] for name, weight in self.weights.items())
        num_frames = int(lengths.sum())
        sums = {f"gram_{name}": distance.item() for name, distance in distances.items()}
        log = self.log_of({"loss": loss.item(), **sums}, num_frames, len(lengths))
        return loss, num_frames, log


def gram_distance(ours, theirs, lengths: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of two Gram matrices for each frame, summed over frames.

    Args:
        ours, theirs: each the two batches (B, T, C) that a matrix is of, zero at padding, each with
            a width C of its own
        lengths: (B,), valid frames
    """
    distance = (gram(*ours) - gram(*theirs)).square().sum(dim=(1, 2))
    return (distance / lengths.clamp(min=1)).sum()


def gram(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Products of all frames with all frames (B, T, T), mean over channels."""
    with torch.autocast(rows.device.type, enabled=False):  # half precision holds no such sums
        return torch.bmm(rows, columns.transpose(1, 2)) / rows.size(2)


def _without_padding(frames: torch.Tensor, padding_mask) -> torch.Tensor:
    """Zero there."""
    frames = frames.float()
    return frames if padding_mask is None else frames.masked_fill(padding_mask[..., None], 0)
