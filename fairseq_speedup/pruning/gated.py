"""Layers that gates scale. Each takes the place of a layer with its parameters, under their names;
``gate`` is in a tuple, as it belongs to the model's pruning."""

import torch
import torch.nn.functional as F
from torch import nn


class Gated:
    """Takes the weights of another layer."""

    gate: tuple
    repeats: int
    replaced: type[nn.Module]

    @classmethod
    def of(cls, layer: nn.Module, gate, repeats: int = 1):
        """
        Args:
            gate: a HardConcrete
            repeats: inputs that each gate scales
        """
        gated = cls.__new__(cls)
        gated.__dict__.update(layer.__dict__)
        gated.gate = (gate,)
        gated.repeats = repeats
        gated.replaced = type(layer)
        return gated

    def factors(self) -> torch.Tensor:
        """Of each input."""
        (gate,) = self.gate
        values = gate.values
        return values if self.repeats == 1 else values.repeat_interleave(self.repeats)


class GatedLinear(Gated, nn.Linear):
    """Its inputs are scaled."""

    def forward(self, frames):
        return F.linear(frames, self.weight * self.factors().to(self.weight.dtype), self.bias)


class GatedConv1d(Gated, nn.Conv1d):
    """Its input channels are scaled."""

    def forward(self, frames):
        factors = self.factors().to(self.weight.dtype)[:, None]  # (C, 1) of weight (C', C, K)
        return self._conv_forward(frames, self.weight * factors, self.bias)


class OpenLayerNorm(Gated, nn.LayerNorm):
    """Mean and variance are of the channels whose gate is open, as they are once the others are cut
    out; what it gives for the others is not used."""

    def forward(self, frames):
        is_open = (self.factors() > 0).float()
        num_open = is_open.sum().clamp(min=1)
        values = frames.float()
        mean = (values * is_open).sum(dim=-1, keepdim=True) / num_open
        centred = values - mean
        variance = (centred.square() * is_open).sum(dim=-1, keepdim=True) / num_open
        normalised = centred * torch.rsqrt(variance + self.eps)
        return (normalised * self.weight.float() + self.bias.float()).to(frames.dtype)
