"""Compute in fairseq's training log: MACs per second of audio and the real-time factor."""

import logging

from fairseq.logging import metrics

from fairseq_speedup.lengths import lengths_of
from fairseq_speedup.macs import MacCounter, UncountableError
from fairseq_speedup.profiling.clock import now

logger = logging.getLogger(__name__)


class TrainingProfile:
    """Adds the cost of each batch to the criterion's logging output and reduces it to metrics.

    ``gmacs_per_s``: 1e9 MACs that one forward pass takes per second of audio, at true lengths.
    ``rtf``, in validation: seconds in the model per second of audio. In training: seconds that
    went by per second of audio, data loading, backward pass and optimiser included, on all
    workers together.

    Args:
        model: the model that is trained
        sample_rate: of the audio, in Hz
    """

    def __init__(self, model, sample_rate: int):
        self.sample_rate = sample_rate
        self.counter: MacCounter | None = None
        try:
            self.counter = MacCounter(model)
        except UncountableError as error:
            logger.warning("MACs are not logged: %s", error)

    def cost(self, sample: dict) -> dict:
        """Seconds of audio and MACs of a batch, under keys that fairseq sums over workers."""
        if "net_input" not in sample:
            return {}
        net_input = sample["net_input"]
        num_samples = lengths_of(net_input.get("padding_mask"), net_input["source"]).cpu().numpy()
        cost = {"_audio_seconds": float(num_samples.sum()) / self.sample_rate}
        if self.counter is not None:
            cost["_gmacs"] = self.counter.count(num_samples).sum().total / 1e9
        return cost


class ForwardTimer:
    """Measures the seconds spent in a model's forward calls, while used as a context."""

    def __init__(self, model):
        self.model = model
        self.device = next(model.parameters()).device
        self.seconds = 0.0

    def __enter__(self):
        self._hooks = [
            self.model.register_forward_pre_hook(self._start),
            self.model.register_forward_hook(self._stop),
        ]
        return self

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_):
        self._started = now(self.device)

    def _stop(self, *_):
        self.seconds += now(self.device) - self._started


def reduce_compute_metrics(logging_outputs) -> None:
    """Turns the summed costs into ``gmacs_per_s`` and ``rtf``."""
    audio_seconds = _total(logging_outputs, "_audio_seconds")
    if audio_seconds <= 0:
        return
    metrics.log_scalar("_audio_seconds", audio_seconds, round=3)
    if any("_gmacs" in log for log in logging_outputs):
        metrics.log_scalar("_gmacs", _total(logging_outputs, "_gmacs"), round=3)
        metrics.log_derived(
            "gmacs_per_s",
            lambda meters: round(meters["_gmacs"].sum / meters["_audio_seconds"].sum, 3),
        )
    if any("_model_seconds" in log for log in logging_outputs):
        metrics.log_scalar("_model_seconds", _total(logging_outputs, "_model_seconds"), round=3)
        metrics.log_derived(
            "rtf",
            lambda meters: round(meters["_model_seconds"].sum / meters["_audio_seconds"].sum, 5),
        )
    else:
        metrics.log_speed("_audio_seconds_per_s", audio_seconds, round=3)
        metrics.log_derived("rtf", lambda meters: _inverse(meters["_audio_seconds_per_s"].avg))


def _total(logging_outputs, key: str) -> float:
    return float(sum(log.get(key, 0.0) for log in logging_outputs))


def _inverse(rate: float) -> float:
    return round(1 / rate, 5) if rate > 0 else float("nan")
