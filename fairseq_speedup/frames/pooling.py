"""Frame pooling: windows of k frames become one for the transformer, and k again after it.

As in SEW (arXiv 2109.06870): the frames are pooled, the positional convolution sees the unpooled
ones with stride k, and the transformer's output is upsampled by a learned layer. That one begins as
plain repetition and the pooling as the mean, so that a pretrained encoder can go on from there.
Where the positions are attention's own, as in WavLM and Conformers, they are those of the windows.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from torch import nn

from fairseq_speedup.lengths import (
    multiple_length,
    padding_mask_of,
    pooled_length,
)
from fairseq_speedup.registry import Registry

FRAME_POOLS = Registry("frame_pool_method")
MOST_FRAMES = 64  # 1.3 seconds


@dataclass
class FramePoolConfig(FairseqDataclass):
    frame_pool: int = field(
        default=1,
        metadata={
            "help": "frames that become one before the transformer, and as many again after it; "
            "1 is off"
        },
    )
    frame_pool_method: str = field(
        default="mean",
        metadata={"help": "how frames become one: mean, or conv (learned, begins as the mean)"},
    )


def check_frame_pool(cfg: FramePoolConfig) -> None:
    """Raises ValueError for options out of range."""
    FRAME_POOLS.lookup(cfg.frame_pool_method)
    if not 1 <= cfg.frame_pool <= MOST_FRAMES:
        raise ValueError(
            f"frame_pool={cfg.frame_pool} is out of range; it must be a whole number, 1 to "
            f"{MOST_FRAMES}"
        )


class MeanPool(nn.Module):
    """Mean of each window's valid frames."""

    def __init__(self, dim: int, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, frames, lengths):
        """
        Args:
            frames: (B, T, C), T a multiple of the factor, zero at padding
            lengths: (B,), valid frames
        Returns:
            (B, T / factor, C); an utterance's last window is the mean of what it has
        """
        batch_size, _, dim = frames.shape
        windows = frames.reshape(batch_size, -1, self.factor, dim)
        return windows.sum(dim=2) / self._num_valid(windows.size(1), lengths)

    def _num_valid(self, num_windows: int, lengths):
        """Valid frames (B, T / factor, 1) of each window, 1 where there is none."""
        starts = torch.arange(num_windows, device=lengths.device) * self.factor
        return (lengths[:, None] - starts).clamp(1, self.factor)[:, :, None]

    def macs_per_window(self) -> int:
        return 0  # additions only


FRAME_POOLS["mean"] = MeanPool


@FRAME_POOLS.register("conv")
class ConvPool(MeanPool):
    """A learned convolution over each window, which begins as the mean."""

    def __init__(self, dim: int, factor: int):
        super().__init__(dim, factor)
        self.conv = nn.Conv1d(dim, dim, factor, stride=factor)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(dim)[:, :, None].expand(-1, -1, factor) / factor)
            self.conv.bias.zero_()

    def forward(self, frames, lengths):
        weight, bias = self.conv.weight, self.conv.bias
        pooled = F.conv1d(frames.transpose(1, 2), weight, stride=self.factor).transpose(1, 2)
        # a window that is not full is scaled up, as its mean would be
        return pooled * (self.factor / self._num_valid(pooled.size(1), lengths)).to(pooled) + bias

    def macs_per_window(self) -> int:
        return self.conv.weight.numel()


class Upsampling(nn.Module):
    """Each frame becomes ``factor`` frames: copies of it plus GELU(Linear), which begins at 0."""

    def __init__(self, dim: int, factor: int):
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(dim, factor * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, frames):
        """(B, T, C) -> (B, factor * T, C)"""
        learned = F.gelu(self.linear(frames)).unflatten(2, (self.factor, -1))  # (B, T, k, C)
        return (frames[:, :, None] + learned).reshape(frames.size(0), -1, frames.size(2))


@dataclass
class Pooled:
    """What :meth:`FrameReduction.pool` gives.

    frames: (B, T', C), for the transformer
    lengths: (B,), valid ones
    padding_mask: (B, T'), True at padding, or None where nothing is padded
    windowed: (B, T'', C), the unpooled frames, filled up to whole windows, for the positions
    windowed_mask: (B, T''), True at padding, or None where nothing is padded or pooled
    """

    frames: torch.Tensor
    lengths: torch.Tensor
    padding_mask: torch.Tensor | None
    windowed: torch.Tensor
    windowed_mask: torch.Tensor | None


class FrameReduction(nn.Module):
    """Pools what the transformer is given and upsamples what it returns.

    Args:
        method: a name in FRAME_POOLS
        factors: those that the model can pool by; 1 leaves the frames alone
        encoder: fairseq's transformer, whose positional convolution gets the factor as its stride
    """

    def __init__(self, method: str, factors: list[int], encoder):
        super().__init__()
        dim = encoder.embedding_dim
        pool = FRAME_POOLS.lookup(method)
        pooled_by = [factor for factor in factors if factor > 1]
        self.pools = nn.ModuleDict({str(k): pool(dim, k) for k in pooled_by})
        self.upsamplings = nn.ModuleDict({str(k): Upsampling(dim, k) for k in pooled_by})
        self._last_pos_conv: tuple[nn.Conv1d, ...] = ()
        if pooled_by and encoder.pos_conv is not None:
            convolutions = [m for m in encoder.pos_conv.modules() if isinstance(m, nn.Conv1d)]
            self._last_pos_conv = (convolutions[-1],)  # in a tuple: it is the encoder's, not ours
        self.switch(factors[0])

    def switch(self, factor: int) -> None:
        """Chooses one of the factors."""
        self.factor = factor
        for conv in self._last_pos_conv:
            conv.stride = (factor,)

    def output_lengths(self, lengths):
        """Frames of the transformer for ``lengths`` frames (int, numpy array or tensor)."""
        return pooled_length(lengths, self.factor)

    def fewest(self, lengths):
        """Frames of the transformer at the largest of the factors."""
        return pooled_length(lengths, max([1, *map(int, self.pools)]))

    def macs(self, lengths):
        """Multiply-accumulates of pooling and of upsampling ``lengths`` frames (two arrays)."""
        if self.factor == 1:
            return lengths * 0, lengths * 0
        windows = pooled_length(lengths, self.factor)
        upsampling = self.upsamplings[str(self.factor)].linear.weight.numel()
        return windows * self.pools[str(self.factor)].macs_per_window(), windows * upsampling

    def pool(self, frames, lengths, padding_mask) -> Pooled:
        """
        Args:
            frames: (B, T, C), zero at padding
            lengths: (B,), valid frames
            padding_mask: (B, T), True at padding, or None where nothing is padded
        """
        if self.factor == 1:
            return Pooled(frames, lengths, padding_mask, frames, padding_mask)
        num_frames = frames.size(1)
        num_windowed = multiple_length(num_frames, self.factor)
        windowed = F.pad(frames, (0, 0, 0, num_windowed - num_frames))
        pooled = self.pools[str(self.factor)](windowed, lengths)
        pooled_lengths, pooled_mask = self.output_lengths(lengths), None
        if padding_mask is not None:
            pooled_mask = padding_mask_of(pooled_lengths, pooled.size(1))
            pooled = pooled.masked_fill(pooled_mask[:, :, None], 0)
        windowed_mask = padding_mask_of(lengths, num_windowed)
        return Pooled(pooled, pooled_lengths, pooled_mask, windowed, windowed_mask)

    def upsample(self, hidden, num_frames: int):
        """What the transformer returned (B, T', C) -> (B, num_frames, C)"""
        if self.factor == 1:
            return hidden
        return self.upsamplings[str(self.factor)](hidden)[:, :num_frames]
