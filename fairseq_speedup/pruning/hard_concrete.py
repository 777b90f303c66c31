"""Hard-concrete gates (arXiv 1712.01312): factors in 0 to 1 that are exactly 0 with a probability
that can be learned."""

import math

import torch
from torch import nn

TEMPERATURE = 2 / 3
STRETCH = 0.1  # beyond 0 and 1, to both sides
DROP_PROB = 0.01  # of each gate at the beginning
INIT_STD = 0.01
EPSILON = 1e-6
# factor of the logit in evaluation, by which the clamped sigmoid is nearest to a gate's mean
# (DPHuBERT, arXiv 2305.17651, after arXiv 1910.04732)
MEAN_SLOPE = 0.8
GRADIENT_SCALE = 10.0
SURE = 40.0  # a logit of which no float32 tells the sigmoid from 1


class HardConcrete(nn.Module):
    """``size`` gates.

    What is learned is the logit over ``lr_scale``: an optimiser that divides by the size of the
    gradient, as Adam does, then moves the logit ``lr_scale`` times as far as a weight, whatever
    groups of parameters it knows (in fp16 fairseq's has one). The gradient is GRADIENT_SCALE times
    the logit's, so that neither Adam's epsilon swallows it nor a clipped norm is all gates.

    Attributes:
        values: (size,), of :meth:`draw`, :meth:`open` or :meth:`settle`, for all uses in one
            forward pass
    """

    def __init__(self, size: int, lr_scale: float, least: int = 0):
        """
        Args:
            least: gates that stay open once they are settled
        """
        super().__init__()
        self.lr_scale = lr_scale
        self.least = least
        mean = math.log(1 - DROP_PROB) - math.log(DROP_PROB)
        self.score = nn.Parameter(torch.empty(size).normal_(mean, INIT_STD) / lr_scale)
        self.values = None

    @property
    def size(self) -> int:
        return self.score.numel()

    def logits(self) -> torch.Tensor:
        """(size,), float32"""
        return faster(self.score, self.lr_scale)

    def open_probs(self, shift: float = 0.0) -> torch.Tensor:
        """(size,), the probability that each gate is above 0, were its logit ``shift`` larger."""
        return torch.sigmoid(
            self.logits() + shift - TEMPERATURE * math.log(STRETCH / (1 + STRETCH))
        )

    def draw(self) -> None:
        """Random values, of training."""
        uniform = torch.rand_like(self.score, dtype=torch.float32)
        uniform = uniform * (1 - 2 * EPSILON) + EPSILON
        noise = torch.log(uniform) - torch.log1p(-uniform)
        stretched = torch.sigmoid((noise + self.logits()) / TEMPERATURE)
        self.values = (stretched * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)

    def open(self) -> None:
        """Those of a model without gates."""
        self.values = torch.ones_like(self.score, dtype=torch.float32)

    @torch.no_grad()
    def settle(self, num_open: int) -> None:
        """Those of evaluation: about each gate's mean, and 0 but for the largest ``num_open``."""
        logits = self.logits()
        values = torch.sigmoid(logits / TEMPERATURE * MEAN_SLOPE)
        closed = torch.topk(logits, self.size - num_open, largest=False).indices
        values[closed] = 0
        self.values = values

    @torch.no_grad()
    def decide(self, is_open) -> None:
        """Makes sure of each gate, by a mask (size,): in evaluation it is 1 or 0."""
        sure = torch.where(torch.as_tensor(is_open, device=self.score.device), SURE, -SURE)
        self.score.copy_(sure / self.lr_scale)


def faster(parameter: torch.Tensor, scale: float) -> torch.Tensor:
    """``scale * parameter`` in float32, with a gradient of GRADIENT_SCALE."""
    value = parameter.float()
    return (scale * value).detach() + GRADIENT_SCALE * (value - value.detach())
