"""``ctc_exits``: fairseq's CTC loss, summed over the exits of an early-exit model."""

import math
from dataclasses import dataclass, field

from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.logging import metrics

from fairseq_speedup.criterions.ctc_pruning import (
    Computed,
    CtcPruningConfig,
    CtcPruningCriterion,
    unwrapped,
)

PREFIX = "loss_exit_"
SIZE_PREFIX = "size_exit_"  # sample size of the batches in which that exit was reached


@dataclass
class CtcExitsConfig(CtcPruningConfig):
    exit_loss_weight: float = field(
        default=1.0,
        metadata={"help": "weight of each exit's CTC loss; the last layer's weighs 1"},
    )


@register_criterion("ctc_exits", dataclass=CtcExitsConfig)
class CtcExitsCriterion(CtcPruningCriterion):
    """The last layer's CTC loss plus, in training, the weighted losses of every exit
    (arXiv 2303.06740 sums them). Validation is fairseq's: the loss and WER of what the model would
    output, at its exits if exit_criterion is set."""

    def __init__(self, cfg: CtcExitsConfig, task):
        if not 0 <= cfg.exit_loss_weight < math.inf:
            raise ValueError(
                f"criterion.exit_loss_weight={cfg.exit_loss_weight} is out of range; "
                "it must be 0 or more"
            )
        super().__init__(cfg, task)
        self.exit_loss_weight = cfg.exit_loss_weight

    def forward(self, model, sample, reduce=True, **kwargs):
        return self.losses(model, model(**sample["net_input"]), sample)

    def losses(self, model, output: dict, sample):
        """As fairseq's forward, of what the model already gave."""
        loss, sample_size, logging_output = super().forward(Computed(model, output), sample)
        if model.training:
            # every exit on every worker, also one whose layer was dropped: logs are summed
            for layer in getattr(unwrapped(model).w2v_encoder, "exit_layers", []):
                logging_output[f"{PREFIX}{layer}"] = 0.0
                logging_output[f"{SIZE_PREFIX}{layer}"] = 0
        for layer, logits in output.get("exit_logits", {}).items():
            # fairseq writes into a padded batch's logits: each exit gets a dict of its own
            exit_output = {"encoder_out": logits, "padding_mask": output["padding_mask"]}
            exit_loss, _, _ = super().forward(Computed(model, exit_output), sample)
            loss = loss + self.exit_loss_weight * exit_loss
            logging_output[f"{PREFIX}{layer}"] = utils.item(exit_loss.data)
            logging_output[f"{SIZE_PREFIX}{layer}"] = sample_size
        logging_output["loss"] = utils.item(loss.data)
        return loss, sample_size, logging_output

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        CtcPruningCriterion.reduce_metrics(logging_outputs)
        names = {name for log in logging_outputs for name in log if name.startswith(PREFIX)}
        for name in sorted(names):
            log_ctc(logging_outputs, name, SIZE_PREFIX + name[len(PREFIX) :])


def log_ctc(logging_outputs, name: str, sample_size: str) -> None:
    """Logs the CTC loss ``name`` as fairseq logs its own: in bits, by what it is a sum over, where
    there was any."""
    loss = utils.item(sum(log.get(name, 0) for log in logging_outputs))
    size = utils.item(sum(log.get(sample_size, 0) for log in logging_outputs))
    if size > 0:
        metrics.log_scalar(name, loss / size / math.log(2), size, round=3)
