"""What every waveform reduction has in common."""

import torch
from torch import nn

from fairseq_speedup.lengths import FrameGrid, padding_mask_of
from fairseq_speedup.waveform.registry import WAVEFORM_REDUCTIONS


class WaveformReduction(nn.Module):
    """Shortens a batch of waveforms.

    Subclasses implement :meth:`reduce`, :meth:`output_lengths`, :meth:`needed_samples`,
    :meth:`frame_grid` and :meth:`macs`; this class keeps padding out: samples past an utterance's
    length are zero before and after, so that an utterance gives the same output alone and in a
    padded batch.
    """

    def reduce(self, waveform: torch.Tensor) -> torch.Tensor:
        """(B, S) -> (B, output_lengths(S))"""
        raise NotImplementedError

    def output_lengths(self, lengths):
        """Samples left of ``lengths`` samples (int, numpy array or tensor)."""
        raise NotImplementedError

    def needed_samples(self, length: int) -> int:
        """The fewest samples that leave ``length``."""
        raise NotImplementedError

    def fewest(self, lengths):
        """Samples left at the largest of the factors that can be chosen."""
        return self.output_lengths(lengths)

    def most_needed(self, length: int) -> int:
        """The fewest samples that leave ``length`` at each of the factors that can be chosen."""
        return self.needed_samples(length)

    def frame_grid(self, grid: FrameGrid) -> FrameGrid:
        """Where the samples left lie, of samples that lie on ``grid``."""
        raise NotImplementedError

    def macs(self, lengths):
        """Multiply-accumulates for ``lengths`` samples of input."""
        raise NotImplementedError

    def forward(self, waveform: torch.Tensor, lengths: torch.Tensor):
        """
        Args:
            waveform: (B, S)
            lengths: (B,), valid samples
        Returns:
            the shorter waveform (B, S') and its valid samples (B,); zero past them
        """
        waveform = waveform.masked_fill(padding_mask_of(lengths, waveform.size(1)), 0)
        reduced = self.reduce(waveform)
        reduced_lengths = self.output_lengths(lengths)
        expected = self.output_lengths(waveform.size(1))
        if reduced.size(1) != expected:
            raise AssertionError(
                f"{type(self).__name__} gave {reduced.size(1)} samples of {waveform.size(1)}; "
                f"its length formula says {expected}"
            )
        return (
            reduced.masked_fill(padding_mask_of(reduced_lengths, expected), 0),
            reduced_lengths,
        )


@WAVEFORM_REDUCTIONS.register("none")
class NoReduction(WaveformReduction):
    """The waveform as it is."""

    def __init__(self, factor: float = 1):
        super().__init__()

    def output_lengths(self, lengths):
        return lengths

    def needed_samples(self, length: int) -> int:
        return length

    def frame_grid(self, grid):
        return grid

    def macs(self, lengths):
        return lengths * 0

    def forward(self, waveform, lengths):
        return waveform, lengths


def whole_factor(factor: float, method: str) -> int:
    """``factor`` as an int; a ValueError where it has a fraction."""
    if factor != int(factor):
        raise ValueError(
            f"downsample={method} needs a whole downsample_factor (2, 3, 4, ...), got {factor}; "
            "downsample=signal takes any"
        )
    return int(factor)
