"""Signal downsampling: resample the 16 kHz waveform to a lower rate."""

import math
from fractions import Fraction

import torch
import torch.nn.functional as F

from fairseq_speedup.lengths import needed_resampled_length, pooled_length, resampled_length
from fairseq_speedup.waveform.base import WaveformReduction
from fairseq_speedup.waveform.filters import lowpass
from fairseq_speedup.waveform.registry import WAVEFORM_REDUCTIONS

MAX_DENOMINATOR = 100
ZERO_CROSSINGS = 24  # of the sinc, on each side
ROLLOFF = 0.93  # cutoff as a fraction of the new Nyquist frequency


@WAVEFORM_REDUCTIONS.register("signal")
class SignalDownsampling(WaveformReduction):
    """Band-limited resampling by a polyphase windowed-sinc filter (SD in arXiv 2303.06740).

    The factor p/q is the closest fraction with a denominator of at most 100 (2.67 is 267/100;
    write 2.6667 for 8/3, that is 6 kHz). Output sample ``q i + j`` lies at input sample
    ``p i + p j / q``: q filters, one per j, applied every p samples.
    """

    def __init__(self, factor: float):
        super().__init__()
        self.factor = Fraction(factor).limit_denominator(MAX_DENOMINATOR)
        if self.factor == 1:
            raise ValueError(
                f"downsample_factor={factor} is taken for 1, which changes nothing: it must be "
                f"{1 + 1 / MAX_DENOMINATOR:g} or more"
            )
        stride, num_phases = self.factor.numerator, self.factor.denominator
        cutoff = 0.5 * ROLLOFF / float(self.factor)
        half_width = ZERO_CROSSINGS / (2 * cutoff)
        self.margin = math.ceil(half_width)
        taps = 2 * self.margin + 1 + math.ceil((num_phases - 1) * self.factor)
        centres = torch.arange(num_phases, dtype=torch.double) * (stride / num_phases)
        positions = torch.arange(taps)[None, :] - self.margin - centres[:, None]
        filters = lowpass(positions, cutoff, half_width)
        filters = filters / filters.sum(dim=1, keepdim=True)  # constant in, the same constant out
        # (q, 1, taps); derived from the config, so not in the checkpoint
        self.register_buffer("filters", filters[:, None, :].float(), persistent=False)

    def reduce(self, waveform):
        num_outputs = self.output_lengths(waveform.size(1))
        num_phases, _, taps = self.filters.shape
        num_strides = pooled_length(num_outputs, num_phases)
        needed = (num_strides - 1) * self.factor.numerator + taps
        after = needed - self.margin - waveform.size(1)  # below 0 cuts
        padded = F.pad(waveform[:, None, :], (self.margin, after))
        phases = F.conv1d(padded, self.filters, stride=self.factor.numerator)
        # (B, q, strides) -> (B, strides, q): the phases of one stride are neighbours in time
        return phases.transpose(1, 2).reshape(waveform.size(0), -1)[:, :num_outputs]

    def output_lengths(self, lengths):
        return resampled_length(lengths, self.factor)

    def needed_samples(self, length):
        return needed_resampled_length(length, self.factor)

    def frame_grid(self, grid):
        return grid.resampled(self.factor)

    def macs(self, lengths):
        num_phases, _, taps = self.filters.shape
        num_strides = pooled_length(self.output_lengths(lengths), num_phases)
        return num_strides * num_phases * taps

    def extra_repr(self):
        return f"factor={self.factor}"
