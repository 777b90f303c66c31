"""Softmax attention by torch's fused kernels, for those of fairseq's modules that write it out, and
self-attention by it."""

import torch
import torch.nn.functional as F
from torch import nn


def attend(q, k, v, bias=None, key_padding_mask=None, dropout_prob: float = 0.0):
    """
    Args:
        q, k, v: (B, heads, T, C / heads)
        bias: added to the scaled products, of any shape that broadcasts to (B, heads, T, T)
        key_padding_mask: (B, T), True at padding, or None
    Returns:
        (B, T, C)
    """
    if key_padding_mask is not None:
        padding = key_padding_mask[:, None, None, :]
        bias = ~padding if bias is None else bias.masked_fill(padding, -torch.inf)
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(q.dtype)
    attended = F.scaled_dot_product_attention(q, k, v, bias, dropout_prob)
    return attended.transpose(1, 2).flatten(2)  # B x H x T x D -> B x T x C


class SelfAttention(nn.Module):
    """Takes the place of fairseq's MultiheadAttention in an encoder layer, with its projections.

    Args:
        attention: fairseq's
        num_heads: that it has, or is to be given weights for
    """

    def __init__(self, attention, num_heads: int | None = None):
        super().__init__()
        self.num_heads = attention.num_heads if num_heads is None else num_heads
        self.head_dim = attention.head_dim
        self.dropout_module = attention.dropout_module
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, getattr(attention, name))

    def forward(self, query, key=None, value=None, key_padding_mask=None, **unused):
        """
        Args:
            query: (T, B, C); key and value are the same
            key_padding_mask: (B, T), True at padding, or None
        Returns:
            (T, B, C), and None for the weights
        """
        frames = query.transpose(0, 1)  # T x B x C -> B x T x C
        q, k, v = self.projected(frames)
        dropout_prob = self.dropout_module.p if self.training else 0.0
        attended = attend(q, k, v, self.bias_of(frames), key_padding_mask, dropout_prob)
        return self.out_proj(attended).transpose(0, 1), None

    def projected(self, frames):
        """Queries, keys and values (B, heads, T, C / heads) of frames (B, T, C)."""
        return [self.heads_of(each(frames)) for each in (self.q_proj, self.k_proj, self.v_proj)]

    def bias_of(self, frames):
        """Of the products, (B or 1, heads, T, T) of frames (B, T, C), or None."""
        return None

    def heads_of(self, frames):
        """(B, T, C) -> (B, heads, T, C / heads)"""
        return frames.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
