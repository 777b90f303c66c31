"""What the parts that stay can do of the work of those that go."""

import torch
from torch import nn

from fairseq_speedup.low_rank.outputs import OutputStatistics

RIDGE = 1e-3  # of the mean variance of an input


@torch.no_grad()
def reconstruct(layer: nn.Module, inputs: OutputStatistics, stay: torch.Tensor) -> None:
    """Changes the weights of a linear layer or convolution, in place, so that without the inputs
    that go it gives, as nearly as a linear function of the others can, what it gave with them: each
    that goes is foretold from those that stay by least squares, and its mean goes into the bias
    (as in Kwon et al., arXiv 2204.09656).

    Args:
        inputs: seen before
        stay: mask of the inputs, on the CPU
    """
    gone = ~stay
    if not gone.any():
        return
    mean, covariance = inputs.mean(), inputs.covariance()
    within = covariance[stay][:, stay]
    within += RIDGE * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    foretold = torch.linalg.solve(within, covariance[stay][:, gone])  # (stay, gone)
    constant = mean[gone] - mean[stay] @ foretold
    weight = layer.weight.double().cpu()
    taps = weight.unsqueeze(-1) if weight.dim() == 2 else weight  # (outputs, inputs, taps)
    lost = taps[:, gone]
    taps[:, stay] += torch.einsum("ogk,sg->osk", lost, foretold)
    layer.weight.copy_(taps.reshape(layer.weight.shape))
    layer.bias += torch.einsum("ogk,g->o", lost, constant).to(layer.bias)
