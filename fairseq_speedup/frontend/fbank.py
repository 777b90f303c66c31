"""Log-Mel filterbanks and a small strided convolution stack, in place of the pretrained CNN."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_speedup.frontend.config import CNN_FRAME_MS, FrontEndConfig
from fairseq_speedup.lengths import (
    FrameGrid,
    conv_length,
    needed_conv_length,
    padding_mask_of,
)
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

WINDOW_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
NUM_FFT = 512
NUM_MELS = 80
LOWEST_HZ = 20.0
FLOOR = 1e-6  # of Mel energies of a waveform with unit variance
STATISTICS_UPDATES = 200  # at least; see FbankFrontEnd


def mel_filters() -> torch.Tensor:
    """Triangular filters (bins, mels), equally spaced on the HTK mel scale up to half the sample
    rate."""

    def mel(hz):
        return 2595 * math.log10(1 + hz / 700)

    low, high = mel(LOWEST_HZ), mel(SAMPLE_RATE_HZ / 2)
    edges = 700 * (10 ** (torch.linspace(low, high, NUM_MELS + 2, dtype=torch.double) / 2595) - 1)
    bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, NUM_FFT // 2 + 1, dtype=torch.double)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def fourier_matrix() -> torch.Tensor:
    """Windowed discrete Fourier transform (samples, 2 * bins), real parts first: a matrix product
    counts, exports and runs anywhere like any other."""
    time = torch.arange(WINDOW_SAMPLES, dtype=torch.double)
    window = torch.hann_window(WINDOW_SAMPLES, periodic=False, dtype=torch.double)
    angle = 2 * math.pi / NUM_FFT * time[:, None] * torch.arange(NUM_FFT // 2 + 1)
    return window[:, None] * torch.cat([angle.cos(), -angle.sin()], dim=1)


class LogMel(nn.Module):
    """(B, S) -> log-Mel energies (B, T, mels), every 10 ms, normalised to zero mean and unit
    variance per filter with statistics of the training data.

    It computes in single precision whatever the model's, and its buffers stay in it.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("fourier", fourier_matrix().float(), persistent=False)
        self.register_buffer("filters", mel_filters().float(), persistent=False)
        self.register_buffer("mean", torch.zeros(NUM_MELS))
        self.register_buffer("square", torch.ones(NUM_MELS))  # mean square
        self.register_buffer("num_frames", torch.zeros(1))
        self.register_buffer("num_gathered", torch.zeros(1))  # batches

    def _apply(self, function, recurse=True):
        kept = dict(self._buffers)
        super()._apply(function, recurse)
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def energies(self, waveform):
        """(B, S) -> log-Mel energies (B, T, mels), not normalised"""
        return self.energies_of(waveform.float().unfold(1, WINDOW_SAMPLES, HOP_SAMPLES))

    def energies_of(self, windows):
        """Windows (B, T, samples) -> log-Mel energies (B, T, mels), not normalised"""
        real, imaginary = (windows @ self.fourier).chunk(2, dim=2)
        power = real.square() + imaginary.square()
        return (power @ self.filters).clamp(min=FLOOR).log()

    def forward(self, waveform):
        with torch.autocast(waveform.device.type, enabled=False):
            return self.normalise(self.energies(waveform))

    def normalise(self, energies):
        deviation = (self.square - self.mean.square()).clamp(min=1e-4).sqrt()
        return (energies - self.mean) / deviation

    @torch.no_grad()
    def gather(self, energies, lengths) -> None:
        """Adds a batch's valid frames to the statistics, on all workers."""
        valid = ~padding_mask_of(lengths, energies.size(1))
        frames = energies[valid].double()
        sums = torch.cat([frames.sum(0), frames.square().sum(0), valid.sum()[None].double()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        mean, square, count = sums[:NUM_MELS], sums[NUM_MELS:-1], sums[-1]
        total = self.num_frames.double() + count
        self.mean += ((mean - count * self.mean) / total).float()
        self.square += ((square - count * self.square) / total).float()
        self.num_frames.copy_(total)
        self.num_gathered += 1


class FbankFrontEnd(nn.Module):
    """log-Mel filterbanks -> convolution with stride 2 -> convolution with stride
    ``frontend_frame_ms / 20`` -> linear.

    The convolutions pad so that frames fall where the CNN's do: at 20 ms there are exactly as many.
    The normalisation's statistics are gathered over the first ``frontend_match_updates`` batches,
    200 at least, over valid frames only, and then stay; they are part of the checkpoint.

    Args:
        cfg: frame shift and updates of matching
        output_dim: channels that the CNN gave
    """

    def __init__(self, cfg: FrontEndConfig, output_dim: int):
        super().__init__()
        stride = cfg.frontend_frame_ms // CNN_FRAME_MS
        self.stride = stride
        self.log_mel = LogMel()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv1d(NUM_MELS, output_dim, 3, stride=2, padding=1),
                nn.Conv1d(output_dim, output_dim, 2 * stride + 1, stride=stride, padding=stride),
            ]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(output_dim) for _ in self.convolutions])
        self.linear = nn.Linear(output_dim, output_dim)
        self.statistics_updates = max(cfg.frontend_match_updates, STATISTICS_UPDATES)

    def output_lengths(self, lengths):
        """Frames of ``lengths`` samples (int, numpy array or tensor)."""
        lengths = conv_length(lengths, WINDOW_SAMPLES, HOP_SAMPLES)
        for conv in self.convolutions:
            lengths = _conv_length(lengths, conv)
        return lengths

    def needed_samples(self, length: int) -> int:
        """The fewest samples that give ``length`` frames."""
        for conv in reversed(self.convolutions):
            length = needed_conv_length(
                length, conv.kernel_size[0], conv.stride[0], conv.padding[0]
            )
        return needed_conv_length(length, WINDOW_SAMPLES, HOP_SAMPLES)

    def frame_grid(self, grid: FrameGrid) -> FrameGrid:
        """Where the frames lie, of samples that lie on ``grid``."""
        grid = grid.conv(WINDOW_SAMPLES, HOP_SAMPLES)
        for conv in self.convolutions:
            grid = grid.conv(conv.kernel_size[0], conv.stride[0], conv.padding[0])
        return grid

    def macs(self, lengths):
        """Multiply-accumulates for ``lengths`` samples, the Fourier transform as it is done here,
        by a matrix product."""
        lengths = conv_length(lengths, WINDOW_SAMPLES, HOP_SAMPLES)
        macs = lengths * (self.log_mel.fourier.numel() + self.log_mel.filters.numel())
        for conv in self.convolutions:
            lengths = _conv_length(lengths, conv)
            macs = macs + lengths * conv.weight.numel()
        return macs + lengths * self.linear.weight.numel()

    def forward(self, waveform, lengths):
        """
        Args:
            waveform: (B, S)
            lengths: (B,), valid samples
        Returns:
            frames (B, C, T), as the CNN gives them, and their valid counts (B,)
        """
        with torch.autocast(waveform.device.type, enabled=False):
            energies = self.log_mel.energies(waveform)
            lengths = conv_length(lengths, WINDOW_SAMPLES, HOP_SAMPLES)
            if self.training and self.log_mel.num_gathered < self.statistics_updates:
                self.log_mel.gather(energies, lengths)
            energies = self.log_mel.normalise(energies)
        return self.convolve(energies, lengths)

    def convolve(self, energies, lengths):
        """
        Args:
            energies: (B, T', mels), normalised
            lengths: (B,), valid ones
        Returns:
            as :meth:`forward`
        """
        frames = energies.to(self.convolutions[0].weight.dtype).transpose(1, 2)  # (B, mels, T)
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            frames = frames.masked_fill(padding_mask_of(lengths, frames.size(2))[:, None], 0)
            frames = conv(frames)
            frames = F.gelu(norm(frames.transpose(1, 2))).transpose(1, 2)
            lengths = _conv_length(lengths, conv)
        return self.linear(frames.transpose(1, 2)).transpose(1, 2), lengths


def _conv_length(lengths, conv: nn.Conv1d):
    return conv_length(lengths, conv.kernel_size[0], conv.stride[0], conv.padding[0])
