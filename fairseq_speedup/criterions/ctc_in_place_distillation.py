"""``ctc_in_place_distillation``: one model of many speeds, of which the slowest teaches the others.

In-place distillation and the sandwich rule are those of universally slimmable networks (arXiv
1903.05134); speech models were trained so by LightHuBERT (arXiv 2203.15610) and arXiv 2406.10160.
"""

from dataclasses import dataclass, field

from fairseq import utils
from fairseq.criterions import register_criterion

from fairseq_speedup.criterions.ctc_exits import (
    PREFIX,
    SIZE_PREFIX,
    CtcExitsCriterion,
    log_ctc,
    unwrapped,
)
from fairseq_speedup.criterions.distillation import (
    DistillationConfig,
    DistillationCriterion,
    HeadFrames,
    head_input,
    log_distance,
)

LOSS = "loss_at_"  # of a speed, by its name
SIZE = "size_at_"  # sample size of the batches that were run at it
TEACHER = "loss_teacher_at_"
FRAMES = "teacher_frames_at_"


@dataclass
class CtcInPlaceDistillationConfig(DistillationConfig):
    sampled_speeds: int = field(
        default=1,
        metadata={"help": "reduced speeds drawn for each update, beside the whole model"},
    )
    sandwich: bool = field(
        default=False,
        metadata={"help": "the fastest speed in every update, beside those that are drawn"},
    )


@register_criterion("ctc_in_place_distillation", dataclass=CtcInPlaceDistillationConfig)
class CtcInPlaceDistillationCriterion(DistillationCriterion):
    """In training, of each batch, the CTC losses (and those of exits) of the whole model, the
    slowest of its speeds, and of reduced speeds that are drawn for the update, plus the distance of
    each of these from what the whole model gave in the same forward pass, which learns nothing
    from it. Validation is fairseq's, at the speed that the model is set to."""

    def __init__(self, cfg: CtcInPlaceDistillationConfig, task):
        super().__init__(cfg, task)
        _check_speeds(cfg, getattr(task, "speeds", None))
        self.sampled_speeds, self.sandwich = cfg.sampled_speeds, cfg.sandwich

    def forward(self, model, sample, reduce=True, **kwargs):
        if not model.training:
            return super().forward(model, sample, reduce, **kwargs)
        encoder = unwrapped(model).w2v_encoder
        drawn = encoder.speeds.drawn_reduced(
            encoder.num_updates, self.sampled_speeds, self.sandwich
        )
        speeds = [encoder.speeds.whole, *drawn]
        with head_input(unwrapped(model)) as hidden:
            # in one call: distributed training wants every weight in forward
            outputs = model(**sample["net_input"], speeds=speeds)["at_speeds"]
        frames = [
            HeadFrames(output, given, self.blank_idx)
            for output, given in zip(outputs, hidden, strict=True)
        ]
        losses = [self.losses(model, output, sample) for output in outputs]
        (loss, sample_size, log), *_ = losses
        names = [encoder.speeds.name_of(speed) for speed in speeds]
        log |= {f"{LOSS}{names[0]}": log["loss"], f"{SIZE}{names[0]}": sample_size}
        whole = frames[0].detached()
        for name, ours, (own_loss, _, own_log) in zip(
            names[1:], frames[1:], losses[1:], strict=True
        ):
            distance = self.distance(ours, whole)
            loss = loss + own_loss + self.distillation_weight * distance
            log |= {
                f"{LOSS}{name}": own_log["loss"],
                f"{SIZE}{name}": sample_size,
                f"{TEACHER}{name}": utils.item(distance.data),
                f"{FRAMES}{name}": int(ours.lengths.sum()),
            }
            for key in own_log:
                if key.startswith((PREFIX, SIZE_PREFIX)):  # an exit's, over all speeds
                    log[key] += own_log[key]
        log["loss"] = utils.item(loss.data)
        return loss, sample_size, log

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        CtcExitsCriterion.reduce_metrics(logging_outputs)
        sizes = {name for log in logging_outputs for name in log if name.startswith(SIZE)}
        for name in sorted(each[len(SIZE) :] for each in sizes):
            log_ctc(logging_outputs, f"{LOSS}{name}", f"{SIZE}{name}")
            log_distance(logging_outputs, f"{TEACHER}{name}", f"{FRAMES}{name}")


def _check_speeds(cfg: CtcInPlaceDistillationConfig, speeds) -> None:
    """
    Args:
        speeds: the ``Speeds`` of the model that is trained, None where it has none
    Raises:
        ValueError: naming the options
    """
    if speeds is None or not speeds.many:
        raise ValueError(
            "criterion._name=ctc_in_place_distillation needs a model of many speeds, of which the "
            "slowest teaches the others: set model.downsample_factors, model.frame_pools, "
            "model.depths or model.widths (such as 'model.frame_pools=[1,2,3]'), or "
            "criterion._name=ctc_distillation, whose teacher is another model"
        )
    reduced = [speed for speed in speeds.reduced if not (cfg.sandwich and speed == speeds.fastest)]
    least = 0 if cfg.sandwich else 1
    if not least <= cfg.sampled_speeds <= len(reduced):
        between = "between the slowest and the fastest" if cfg.sandwich else "faster than the whole"
        raise ValueError(
            f"criterion.sampled_speeds={cfg.sampled_speeds} is out of range; it must be {least} to "
            f"{len(reduced)}, the speeds of this model that are {between}"
        )
