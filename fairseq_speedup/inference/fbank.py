"""Filterbanks in their inference form, for CPUs: utterances without their padding, convolutions as
matrix products over windows of frames, and half of the Fourier transform's."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_speedup.frontend.fbank import (
    FLOOR,
    HOP_SAMPLES,
    NUM_FFT,
    WINDOW_SAMPLES,
    FbankFrontEnd,
)
from fairseq_speedup.inference.cnn import as_linear, even_size, windows_of
from fairseq_speedup.inference.linear import Fp32Linear, linear_of

PIECE_WINDOWS = 200  # 2 seconds, so that what passes between the products stays in the cache


class FourierHalves(nn.Module):
    """Windows (T, samples) -> power (T, bins).

    Power does not depend on where time begins. Counted from the middle of a window, whose
    weights are symmetric, cosines ask for sums of the samples before and after it, and sines for
    differences: two products over half of the samples each.
    """

    def __init__(self):
        super().__init__()
        half = WINDOW_SAMPLES // 2
        time = torch.arange(half, dtype=torch.double) + 0.5
        window = torch.hann_window(WINDOW_SAMPLES, periodic=False, dtype=torch.double)[half:]
        angle = 2 * math.pi / NUM_FFT * time * torch.arange(NUM_FFT // 2 + 1)[:, None]
        self.cosines = product_by(window * angle.cos())
        self.sines = product_by(window * angle.sin())

    def forward(self, windows):
        before, after = windows.chunk(2, dim=1)
        before = before.flip(1)
        real, imaginary = self.cosines(after + before), self.sines(after - before)
        return real.square_().addcmul_(imaginary, imaginary)


def product_by(matrix: torch.Tensor) -> nn.Module:
    """(..., I) -> (..., O) in fp32, by a matrix (O, I)."""
    return Fp32Linear.of(linear_of(matrix.float()))


class FusedFbank(FbankFrontEnd):
    """What the filterbanks of a model give; zero at padding, which is not computed."""

    @classmethod
    def of(cls, fbank: FbankFrontEnd, linear) -> "FusedFbank":
        """Takes the weights of ``fbank``, which is not to be used any more.

        Args:
            linear: builds the linear layers of the inference form
        """
        fused = cls.__new__(cls)
        fused.__dict__.update(fbank.__dict__)
        fused.power = FourierHalves()  # in fp32 in every form: logarithms come after
        fused.mels = product_by(fbank.log_mel.filters.T)
        first, second = fbank.convolutions
        fused.products = nn.ModuleList(
            [linear(as_linear(first)), linear(as_linear(second), of_gelus=True)]
        )
        fused.linear = linear(fbank.linear, of_gelus=True)
        return fused

    def forward(self, waveform, lengths):
        """As that of the filterbanks."""
        num_frames = self.output_lengths(waveform.size(1))
        frames = waveform.new_zeros(waveform.size(0), num_frames, self.linear.out_features)
        for utterance, length, out in zip(waveform, lengths.tolist(), frames, strict=True):
            values = self._run(utterance[:length])
            out[: len(values)] = values
        return frames.transpose(1, 2), self.output_lengths(lengths)

    def _run(self, samples):
        """(S,) -> (T, C)"""
        frames = self._energies(samples)
        for conv, product, norm in zip(self.convolutions, self.products, self.norms, strict=True):
            (kernel_size,), (stride,), (padding,) = conv.kernel_size, conv.stride, conv.padding
            padded = F.pad(frames, (0, 0, padding, padding))
            frames = product.gelu(windows_of(padded, kernel_size, stride), norm)
        return self.linear(frames)

    def _energies(self, samples):
        """(S,) -> log-Mel energies (T, mels), normalised"""
        windows = samples.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)
        size = even_size(len(windows), PIECE_WINDOWS)
        pieces = [self.mels(self.power(piece)) for piece in windows.split(size)]
        return self.log_mel.normalise(torch.cat(pieces).clamp_(min=FLOOR).log_())
