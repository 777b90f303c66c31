"""A layer norm over channels that are scaled before it."""

import torch
from torch import nn


class ScaledLayerNorm(nn.LayerNorm):
    """The one between CNN and projection of a model whose last convolution was pruned by gates that
    are not quite open, as DPHuBERT's (arXiv 2305.17651)."""

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> "ScaledLayerNorm":
        """Takes the weights of ``norm``; its scale is of no meaning yet."""
        scaled = cls.__new__(cls)
        scaled.__dict__.update(norm.__dict__)
        scaled.scale = nn.Parameter(torch.ones_like(norm.weight))
        return scaled

    def forward(self, frames):
        return super().forward(frames * self.scale)
