"""``ctc_pruning``: fairseq's CTC loss, and in training that of the gates of ``prune_target``."""

from dataclasses import dataclass

from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.ctc import CtcCriterion, CtcCriterionConfig
from fairseq.logging import metrics

# what the model says of each update: in the log, of how many digits
LOGGED = {"pruning_loss": 4, "pruning_share": 4, "pruning_target": 4}


@dataclass
class CtcPruningConfig(CtcCriterionConfig):
    pass


@register_criterion("ctc_pruning", dataclass=CtcPruningConfig)
class CtcPruningCriterion(CtcCriterion):
    """CTC plus, in training, the loss that closes gates until the expected MACs are on target,
    weighed as CTC is: by the sample size, so that a batch of any size wants it as much."""

    def forward(self, model, sample, reduce=True, **kwargs):
        output = model(**sample["net_input"])
        loss, sample_size, log = super().forward(Computed(model, output), sample)
        if "pruning_loss" in output:
            loss = loss + sample_size * output["pruning_loss"]
            log["loss"] = utils.item(loss.data)
            log |= {name: sample_size * utils.item(output[name]) for name in LOGGED}
        return loss, sample_size, log

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        CtcCriterion.reduce_metrics(logging_outputs)
        logged = [log for log in logging_outputs if "pruning_loss" in log]
        size = utils.item(sum(log["sample_size"] for log in logged))
        for name, digits in LOGGED.items():
            if size > 0:
                total = utils.item(sum(log[name] for log in logged))
                metrics.log_scalar(name, total / size, size, round=digits)


class Computed:
    """A model whose output is already there: fairseq's criterion calls the model itself."""

    def __init__(self, model, output):
        self.training = model.training
        self.get_normalized_probs = unwrapped(model).get_normalized_probs
        self.output = output

    def __call__(self, **net_input):
        return self.output


def unwrapped(model):
    """The model inside a distributed wrapper."""
    return model if hasattr(model, "get_normalized_probs") else model.module
