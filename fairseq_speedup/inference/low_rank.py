"""Linear layers of low rank in an inference form, beside whole ones."""

import torch
from torch import nn

from fairseq_speedup.inference.linear import FormLayer, stacked
from fairseq_speedup.low_rank.linear import LowRankLinear


def in_form(layer, linear, of_gelus: bool = False) -> nn.Module:
    """A linear layer, whole or of low rank, in the form whose layers ``linear`` builds.

    Args:
        of_gelus: its inputs are what a GELU gave
    """
    if isinstance(layer, LowRankLinear):
        return TwoLinears(layer, linear, of_gelus)
    return linear(layer, of_gelus)


def beside(layers: list[nn.Module], linear) -> nn.Module:
    """One layer that gives what several, each whole or of low rank, give of the same input, one
    behind another."""
    if any(isinstance(layer, LowRankLinear) for layer in layers):
        return Beside(layers, linear)
    return linear(stacked(layers))


@torch.no_grad()
def times(layer, factor: float) -> nn.Module:
    """A layer that gives ``factor`` times what ``layer`` does, which stays as it is."""
    if isinstance(layer, LowRankLinear):
        made = LowRankLinear(layer.in_features, layer.out_features, layer.rank)
        made.first, made.second = layer.first, times(layer.second, factor)
        return made
    made = stacked([layer])
    made.weight *= factor
    made.bias *= factor
    return made


class TwoLinears(FormLayer):
    """
    Args:
        layer: of low rank
        linear: builds the form's linear layers
        of_gelus: its inputs are what a GELU gave
    """

    def __init__(self, layer: LowRankLinear, linear, of_gelus: bool):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.first = linear(stacked([layer.first]), of_gelus)
        self.second = linear(layer.second)
        self._macs_per_frame = layer.macs_per_frame()

    @property
    def dtype(self) -> torch.dtype:
        """As those of the form have it."""
        return self.second.dtype

    @property
    def in_words(self) -> bool:
        """Likewise."""
        return self.second.in_words

    @property
    def entry(self) -> nn.Module:
        return self.first

    def forward(self, frames):
        return self.second(self.first(frames))

    def gelu(self, frames, norm=None):
        return self.second.gelu(self.first(frames), norm)

    def gelu_then(self, frames, second):
        return self.second.gelu_then(self.first(frames), second)

    def added(self, frames, residual):
        return self.second.added(self.first(frames), residual)

    def added_and_normalised(self, frames, residual, norm):
        return self.second.added_and_normalised(self.first(frames), residual, norm)

    def macs_per_frame(self) -> int:
        return self._macs_per_frame


class Beside(nn.Module):
    """
    Args:
        layers: of the same input, at least one of low rank: their first matrices, and the whole
            ones, are one product
        linear: builds the form's linear layers
    """

    def __init__(self, layers: list[nn.Module], linear):
        super().__init__()
        low = [isinstance(layer, LowRankLinear) for layer in layers]
        firsts = [each.first if is_low else each for each, is_low in zip(layers, low, strict=True)]
        self.sizes = [each.out_features for each in firsts]
        self.first = linear(stacked(firsts))
        seconds = [
            linear(each.second) if is_low else nn.Identity()
            for each, is_low in zip(layers, low, strict=True)
        ]
        self.seconds = nn.ModuleList(seconds)

    def forward(self, frames):
        parts = self.first(frames).split(self.sizes, dim=-1)
        outputs = [second(part) for second, part in zip(self.seconds, parts, strict=True)]
        return torch.cat(outputs, dim=-1)
