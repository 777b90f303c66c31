"""The path of a model on a GPU, from the waveform to the logits, as CUDA graphs."""

import torch
import torch.nn.functional as F
from fairseq.modules.fp32_group_norm import Fp32GroupNorm
from torch import nn

from fairseq_speedup.inference.graphs import Graphs
from fairseq_speedup.lengths import lengths_of, padding_mask_of, shared_length

LONGEST = 61 * 16000  # samples: beyond, kernels are long enough to hide what starting them costs
FINEST = 16000 // 2  # samples that lengths are rounded up to a multiple of, at least
STEPS = 8  # in an octave of lengths: an eighth is computed for nothing, at most


def rounded(num_samples: int) -> int:
    """A length that many lengths share: at most an eighth longer, or half a second."""
    return shared_length(num_samples, FINEST, STEPS)


class CapturedPath:
    """Runs the stages of an encoder as one graph, lengths rounded up. Padding is masked at every
    stage, so that what rounding adds changes nothing.

    Args:
        encoder: a SpeedupEncoder in the form of GPUs, without stages between its layers
        report: of the inference form, whose ``graphs`` say what is not captured
    """

    def __init__(self, encoder: nn.Module, report: dict[str, str]):
        self.encoder = encoder
        self.graphs = Graphs(self.run, lambda why: report.update(graphs=why))
        self.rounds = not _hears_padding(encoder)

    def __call__(self, source: torch.Tensor, padding_mask: torch.Tensor | None) -> dict:
        """
        Args:
            source: waveform (B, S)
            padding_mask: (B, S), True at padding, or None
        Returns:
            fairseq's dict of the encoder, logits in float32
        """
        encoder = self.encoder
        num_samples = source.size(1)
        lengths = lengths_of(padding_mask, source)
        num_logits = encoder.output_lengths(num_samples)
        if num_samples > LONGEST:
            logits = self.run(source, lengths)
        else:
            missing = rounded(num_samples) - num_samples if self.rounds else 0
            waveform = F.pad(source, (0, missing))
            logits = self.graphs(encoder.speeds.default, waveform, lengths)
        logits = logits[:num_logits].to(torch.float32, copy=True)  # the next replay writes over it
        if padding_mask is not None:
            padding_mask = padding_mask_of(encoder.output_lengths(lengths), num_logits)
        return {"encoder_out": logits, "padding_mask": padding_mask, "layer_results": []}

    def run(self, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits (T, B, V) of a waveform (B, S) with valid samples (B,)."""
        encoder = self.encoder
        waveform, lengths = encoder.waveform_reduction(waveform, lengths)
        frames, lengths, padding_mask = encoder.frames(waveform, lengths, is_padded=True)
        hidden, _, _ = encoder.transformer(frames, lengths, padding_mask)
        return encoder.logits(hidden, lengths)


def _hears_padding(encoder: nn.Module) -> bool:
    """Whether what a batch is filled up with changes its utterances, as in stock fairseq's base
    models and data2vec."""
    if encoder.transformer.masked:
        return False
    w2v_model = encoder.w2v_model
    norms = any(isinstance(each, Fp32GroupNorm) for each in w2v_model.feature_extractor.modules())
    pos_conv = w2v_model.encoder.pos_conv
    return norms or (pos_conv is not None and isinstance(pos_conv[0], nn.Sequential))
