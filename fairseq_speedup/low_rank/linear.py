"""A linear layer as a product of two matrices."""

import torch
from torch import nn


class LowRankLinear(nn.Module):
    """(..., in_features) -> (..., out_features), through ``rank`` values.

    Its config, layers of the same name in checkpoints, inference forms and exports all have the two
    matrices as ``first`` and ``second``.

    Args:
        in_features: of the layer that it takes the place of
        out_features: likewise
        rank: values in between
    """

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.first = nn.Linear(in_features, rank, bias=False)
        self.second = nn.Linear(rank, out_features)

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, mean, basis) -> "LowRankLinear":
        """``linear`` with its outputs y projected: mean + basis basis' (y - mean).

        Args:
            mean: (out_features,)
            basis: (out_features, rank), orthonormal columns
        """
        made = cls(linear.in_features, linear.out_features, basis.size(1))
        weight, bias = linear.weight.detach(), linear.bias.detach()
        exact = torch.float64  # of the products that are rounded once
        basis, mean = basis.to(weight.device, exact), mean.to(weight.device, exact)
        first = basis.T @ weight.to(exact)
        second_bias = mean + basis @ (basis.T @ (bias.to(exact) - mean))
        made.first.weight = nn.Parameter(first.to(weight.dtype))
        made.second.weight = nn.Parameter(basis.to(weight.dtype).contiguous())
        made.second.bias = nn.Parameter(second_bias.to(bias.dtype))
        return made

    @property
    def rank(self) -> int:
        return self.first.out_features

    def forward(self, frames):
        return self.second(self.first(frames))

    def macs_per_frame(self) -> int:
        return self.first.weight.numel() + self.second.weight.numel()
