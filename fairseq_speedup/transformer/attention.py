"""Softmax attention by torch's fused kernels, for those of fairseq's modules that write it out."""

import torch
import torch.nn.functional as F


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
