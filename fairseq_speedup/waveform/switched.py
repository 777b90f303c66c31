"""One waveform reduction out of several, chosen from update to update or at decoding."""

import functools

import numpy as np
from torch import nn

from fairseq_speedup.waveform.base import NoReduction, WaveformReduction


class SwitchedReduction(WaveformReduction):
    """
    Args:
        reduction: the class
        factors: one reduction is built for each; factor 1 is the waveform as it is
    """

    def __init__(self, reduction, factors: list[float]):
        super().__init__()
        self.reductions = nn.ModuleDict(
            {module_name(k): (reduction if k > 1 else NoReduction)(k) for k in factors}
        )
        self.switch(factors[0])

    def switch(self, factor: float) -> None:
        """Chooses one of the factors."""
        self.factor = factor

    @property
    def chosen(self) -> WaveformReduction:
        return self.reductions[module_name(self.factor)]

    def output_lengths(self, lengths):
        return self.chosen.output_lengths(lengths)

    def needed_samples(self, length):
        return self.chosen.needed_samples(length)

    def fewest(self, lengths):
        return functools.reduce(
            np.minimum, [each.output_lengths(lengths) for each in self.reductions.values()]
        )

    def most_needed(self, length):
        return max(each.needed_samples(length) for each in self.reductions.values())

    def frame_grid(self, grid):
        return self.chosen.frame_grid(grid)

    def macs(self, lengths):
        return self.chosen.macs(lengths)

    def forward(self, waveform, lengths):
        return self.chosen(waveform, lengths)


def module_name(factor: float) -> str:
    """Of the reduction of a factor: ``2_5`` of 2.5, as a module's name has no point."""
    return f"{factor:.12g}".replace(".", "_")
