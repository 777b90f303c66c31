"""The generator that stock ``fairseq-generate`` drives for CTC models."""

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
        net_input = sample["net_input"]
        if not self.warm:
            log_posteriors(models, net_input)  # not timed: first calls allocate and tune
            self.warm = True
        with self.meter.encoding():
            log_probs, lengths, layer_frames = log_posteriors(models, net_input)
        with self.meter.decoding():
            hypotheses = self.decoder.decode(log_probs, lengths)
        num_samples = lengths_of(net_input.get("padding_mask"), net_input["source"])
        self.meter.count(num_samples, layer_frames)
        for file in self.files:
            file.add(sample["id"].tolist(), hypotheses)
        return hypotheses


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
