"""Downsampling by averaging."""

import torch.nn.functional as F

from fairseq_speedup.lengths import conv_length, needed_conv_length
from fairseq_speedup.waveform.base import WaveformReduction, whole_factor
from fairseq_speedup.waveform.registry import WAVEFORM_REDUCTIONS

PADDING = 2  # samples on each side


@WAVEFORM_REDUCTIONS.register("average")
class AverageDownsampling(WaveformReduction):
    """Average pooling of the waveform, stride k, padding 2 (AV in arXiv 2303.06740).

    The kernel is the study's: 10 samples at factors 2 and 3, 12 at 4; three strides beyond.
    """

    def __init__(self, factor: float):
        super().__init__()
        self.stride = whole_factor(factor, "average")
        self.kernel_size = max(10, 3 * self.stride)

    def reduce(self, waveform):
        return F.avg_pool1d(waveform[:, None, :], self.kernel_size, self.stride, PADDING)[:, 0, :]

    def output_lengths(self, lengths):
        return conv_length(lengths, self.kernel_size, self.stride, PADDING)

    def needed_samples(self, length):
        return needed_conv_length(length, self.kernel_size, self.stride, PADDING)

    def frame_grid(self, grid):
        return grid.conv(self.kernel_size, self.stride, PADDING)

    def macs(self, lengths):
        return lengths * 0  # additions only

    def extra_repr(self):
        return f"kernel_size={self.kernel_size}, stride={self.stride}"
