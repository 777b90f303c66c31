"""Learned convolutional downsampling."""

import torch
from torch import nn

from fairseq_speedup.lengths import conv_length, needed_conv_length
from fairseq_speedup.waveform.base import WaveformReduction, whole_factor
from fairseq_speedup.waveform.filters import lowpass
from fairseq_speedup.waveform.registry import WAVEFORM_REDUCTIONS

KERNEL_SIZE = 161  # samples: 10 ms at 16 kHz


@WAVEFORM_REDUCTIONS.register("conv")
class ConvDownsampling(WaveformReduction):
    """Conv1d(1, 1, 161, stride k) without padding, trained with the rest (CL in arXiv 2303.06740).

    It starts as a low-pass filter at the new Nyquist frequency, so that the pretrained encoder
    first hears a decimated waveform rather than noise.
    """

    def __init__(self, factor: float):
        super().__init__()
        self.stride = whole_factor(factor, "conv")
        self.conv = nn.Conv1d(1, 1, KERNEL_SIZE, stride=self.stride)
        margin = KERNEL_SIZE // 2
        kernel = lowpass(torch.arange(KERNEL_SIZE) - margin, 0.5 / self.stride, margin + 1)
        # tells a checkpoint's factor: the kernel is learned for it and fits no other
        self.register_buffer("factor", torch.tensor(self.stride))
        with torch.no_grad():
            self.conv.weight.copy_((kernel / kernel.sum()).float())
            self.conv.bias.zero_()

    def reduce(self, waveform):
        return self.conv(waveform[:, None, :])[:, 0, :]

    def output_lengths(self, lengths):
        return conv_length(lengths, KERNEL_SIZE, self.stride)

    def needed_samples(self, length):
        return needed_conv_length(length, KERNEL_SIZE, self.stride)

    def frame_grid(self, grid):
        return grid.conv(KERNEL_SIZE, self.stride)

    def macs(self, lengths):
        return self.output_lengths(lengths) * KERNEL_SIZE
