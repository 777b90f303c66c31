"""The positional convolution in its inference form."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import remove_weight_norm

from fairseq_speedup.inference.linear import can_pack


class PackedConv1d(nn.Conv1d):
    """A convolution whose weights are in the layout of oneDNN's kernels, made ready once: of a
    grouped one of this size, fairseq spends half of its time on that."""

    @classmethod
    def convert(cls, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        """Makes of ``conv`` one of these: others hold it, to choose its stride."""
        if hasattr(conv, "weight_g"):
            remove_weight_norm(conv)
        conv.dtype = dtype
        weight, bias = conv.weight.detach().to(dtype), conv.bias.detach().to(dtype)
        conv.packed = can_pack(weight)
        del conv.weight, conv.bias
        conv.bias = bias
        conv.weight = weight
        if conv.packed:
            conv.weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight[:, :, None], *geometry(conv), conv.groups, None
            )
        conv.__class__ = cls

    def forward(self, frames):
        """(B, C, T) -> (B, C, T')"""
        values = frames.to(self.dtype)
        if not self.packed:
            return F.conv1d(
                values, self.weight, self.bias, self.stride, self.padding, groups=self.groups
            ).to(frames.dtype)
        output = torch.ops.mkldnn._convolution_pointwise(
            values[:, :, None], self.weight, self.bias, *geometry(self), self.groups, "none", [], ""
        )
        return output[:, :, 0].to(frames.dtype)


def geometry(conv: nn.Conv1d):
    """padding, stride and dilation of the convolution of images of height 1"""
    return [0, *conv.padding], [1, *conv.stride], [1, 1]
