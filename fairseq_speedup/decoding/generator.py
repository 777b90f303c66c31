"""The generator that stock ``fairseq-generate`` drives for CTC models."""

from dataclasses import dataclass

import torch
from fairseq import utils

from fairseq_speedup.lengths import lengths_of
from fairseq_speedup.profiling.compute import ComputeMeter


def symbols_to_strip(dictionary, blank: int) -> set[int]:
    """Symbols that are no part of a transcript, should a model emit them."""
    return {dictionary.eos(), dictionary.pad(), blank}


class CtcGenerator:
    """Runs the model on a batch and decodes its logits; measures both apart.

    Args:
        decoder: GreedyDecoder or BeamDecoder
        dictionary: the labels
        blank: index of the blank, dropped from printed lines
        meter: receives what each batch cost
        files: written beside fairseq's results (see
            :func:`~fairseq_speedup.decoding.results.result_files`)
    """

    def __init__(self, decoder, dictionary, blank: int, meter: ComputeMeter, files=()):
        self.files = files
        self.upcoming = None  # the next batch, where it is known
        self._ahead = None  # that batch and what the models gave for it
        self.decoder = decoder
        self.meter = meter
        self.warm = False
        self.symbols_to_strip_from_output = symbols_to_strip(dictionary, blank)

    @torch.no_grad()
    def generate(self, models, sample, **unused) -> list[list[dict]]:
        """
        Args:
            models: CTC models whose posteriors are averaged; their frames must agree
            sample: a batch of fairseq's audio dataset
        Returns:
            for each utterance a list of hypotheses, best first
        """
        encoded = self._encoded(models, sample)
        with self.meter.decoding():
            batch = self.decoder.start(encoded.log_probs, encoded.lengths)
        if self.decoder.overlaps:
            self._encode_ahead(models)
        with self.meter.waiting():
            batch.wait()
        with self.meter.decoding():
            hypotheses = batch.hypotheses()
        self.meter.decoded_elsewhere(batch.seconds_elsewhere)
        self.meter.count(encoded.num_samples, encoded.layer_frames)
        for file in self.files:
            file.add(sample["id"].tolist(), hypotheses)
        return hypotheses

    def _encoded(self, models, sample) -> "Encoded":
        if self._ahead is not None:
            (ids, encoded), self._ahead = self._ahead, None
            if torch.equal(ids, sample["id"].cpu()):
                return encoded
        if not self.warm:
            log_posteriors(models, sample["net_input"])  # not timed: first calls allocate and tune
            self.warm = True
        return self._encode(models, sample)

    def _encode(self, models, sample) -> "Encoded":
        net_input = sample["net_input"]
        with self.meter.encoding():
            log_probs, lengths, layer_frames = log_posteriors(models, net_input)
        num_samples = lengths_of(net_input.get("padding_mask"), net_input["source"])
        return Encoded(log_probs, lengths, layer_frames, num_samples)

    def _encode_ahead(self, models) -> None:
        """The next batch, while this one is searched elsewhere."""
        upcoming, self.upcoming = self.upcoming, None
        if not upcoming or "net_input" not in upcoming:
            return
        if self.meter.device.type == "cuda":
            upcoming = utils.move_to_cuda(upcoming)
        try:
            self._ahead = (upcoming["id"].cpu(), self._encode(models, upcoming))
        except Exception:  # it comes again when it is that batch's turn, after this one is written
            self._ahead = None


@dataclass
class Encoded:
    """What the models gave for a batch: see :func:`log_posteriors`; num_samples: (B,)"""

    log_probs: torch.Tensor
    lengths: torch.Tensor
    layer_frames: torch.Tensor | None
    num_samples: torch.Tensor


def log_posteriors(models, net_input: dict):
    """
    Returns:
        log-probabilities (T, B, V) averaged over ``models``; valid frames (B,); frames
        (B, layers) that the layers of the one model with exits or merging were given, or None
    """
    outputs = []
    for model in models:
        net_output = model(**net_input)
        log_probs = model.get_normalized_probs(net_output, log_probs=True)
        batch_first = log_probs.transpose(0, 1)  # T x B x V -> B x T x V
        lengths = lengths_of(net_output["padding_mask"], batch_first)
        outputs.append((log_probs, lengths))
    log_probs, lengths = outputs[0]
    if len(outputs) == 1:
        return log_probs, lengths, net_output.get("layer_frames")
    shapes = {tuple(each.shape) for each, _ in outputs}
    if len(shapes) > 1:
        raise ValueError(
            "the models of an ensemble must give the same frames and labels; "
            f"(frames, batch, labels) are {sorted(shapes)}"
        )
    stacked = torch.stack([each for each, _ in outputs])
    log_probs = utils.log_softmax(torch.logsumexp(stacked, dim=0), dim=-1)
    return log_probs, lengths, None
