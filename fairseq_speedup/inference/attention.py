"""Fused self-attention: one projection for query, key and value, and no work for padding."""

import torch
from torch import nn

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.kernels.attention import attend_in_c, can_attend
from fairseq_speedup.inference.linear import Constant
from fairseq_speedup.inference.low_rank import beside, in_form
from fairseq_speedup.macs import linear_macs
from fairseq_speedup.transformer.attention import attend
from fairseq_speedup.transformer.relative_attention import RelativeAttention
from fairseq_speedup.transformer.reused_attention import (
    ReusedAttention,
    SharedAttention,
    attend_and_share,
)


class FusedAttention(nn.Module):
    """Takes the place of fairseq's MultiheadAttention, or of RelativeAttention, up to ``out_proj``:
    the layer asks for that, with what follows.

    Args:
        attention: the one whose weights it takes
        linear: builds the linear layers of the inference form
    """

    def __init__(self, attention, linear):
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.projection_macs = sum(map(linear_macs, [*projections, attention.out_proj]))
        self.in_proj = beside(projections, linear)
        self.out_proj = in_form(attention.out_proj, linear)
        self.dtype, self.in_words = self.out_proj.dtype, self.out_proj.in_words
        # keeps the gate and the table of distances
        self.relative = attention if isinstance(attention, RelativeAttention) else None
        if self.relative is not None:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                delattr(self.relative, name)

    @property
    def in_c(self) -> bool:
        """Whether C attends, where nothing is padded."""
        return self.dtype is torch.float32 and kernels.LIBRARY is not None

    @classmethod
    def of(cls, attention, linear) -> "FusedAttention | FusedReusedAttention | NoHeads":
        if attention.num_heads == 0:
            return NoHeads(attention)
        if isinstance(attention, ReusedAttention):
            return FusedReusedAttention(attention, linear)
        return (FusedSharedAttention if isinstance(attention, SharedAttention) else cls)(
            attention, linear
        )

    def forward(self, frames, padding_mask=None, packed_lengths=None):
        """
        Args:
            frames: (T, B, C), padded; or packed, (sum of lengths, 1, C)
            padding_mask: (B, T), True at padding, or None
            packed_lengths: frames of each utterance, of packed ones
        Returns:
            (T, B, C'), or so packed, and None for the weights
        """
        projected = self.in_proj(frames).to(self.dtype)
        if can_attend(projected, padding_mask):
            biases = self._biases(frames, packed_lengths)
            attended = attend_in_c(projected, self.num_heads, packed_lengths, biases, self.in_words)
            return attended, None
        projected = self._by_head(projected)
        if packed_lengths is None:
            attended = self._attend(projected, frames, padding_mask)
        else:
            parts = zip(
                projected.split(packed_lengths, dim=3),
                frames.split(packed_lengths),
                strict=True,
            )
            attended = torch.cat([self._attend(*part, None) for part in parts], dim=1)
        return _for_out_proj(attended, frames), None

    def _by_head(self, projected):
        """Query, key and value (3, B, heads, T, C / heads)."""
        # T x B x 3 x H x D -> 3 x B x H x T x D
        return projected.unflatten(2, (3, self.num_heads, -1)).permute(2, 1, 3, 0, 4)

    def _biases(self, frames, packed_lengths):
        """For each utterance (heads, T, T), or None."""
        if self.relative is None:
            return None
        parts = [frames] if packed_lengths is None else frames.split(packed_lengths)
        return [
            each for part in parts for each in self._bias(part).expand(part.size(1), -1, -1, -1)
        ]

    def _bias(self, frames):
        """(B or 1, heads, T, T), or None"""
        return None if self.relative is None else self.relative.bias_of(frames.transpose(0, 1))

    def _attend(self, projected, frames, padding_mask):
        query, key, value = projected
        bias = self._bias(frames)
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":
            return attend_in_parts(query, key, value, bias, padding_mask)
        return attend(query, key, value, bias, padding_mask)

    def macs_per_frame(self) -> int:
        return self.relative.macs_per_frame() if self.relative is not None else 0


class FusedSharedAttention(FusedAttention):
    """Of a layer whose map others reuse."""

    shares_map = True
    in_c = False

    def forward(self, frames, padding_mask=None, packed_lengths=None):
        """As FusedAttention's.

        Returns:
            (T, B, C'), or so packed, and what other layers weight their values by (B, heads, T,
            T), or of each utterance
        """
        projected = self._by_head(self.in_proj(frames).to(self.dtype))
        if packed_lengths is None:
            query, key, value = projected
            attended, weights = attend_and_share(query, key, value, padding_mask)
        else:
            parts = projected.split(packed_lengths, dim=3)
            pairs = [attend_and_share(*part) for part in parts]
            attended = torch.cat([part for part, _ in pairs], dim=1)
            weights = [of_utterance for _, of_utterance in pairs]
        return _for_out_proj(attended, frames), weights


class FusedReusedAttention(nn.Module):
    """Takes the place of ReusedAttention: neither queries nor keys.

    Args:
        attention: the one whose weights it takes
        linear: builds the linear layers of the inference form
    """

    reuses_map = True
    num_products = ReusedAttention.num_products

    def __init__(self, attention, linear):
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.projection_macs = sum(map(linear_macs, [attention.v_proj, attention.out_proj]))
        self.in_proj, self.out_proj = (
            in_form(each, linear) for each in (attention.v_proj, attention.out_proj)
        )
        self.dtype = self.out_proj.dtype

    def forward(self, frames, weights, packed_lengths=None):
        """
        Args:
            frames: (T, B, C), padded; or packed, (sum of lengths, 1, C)
            weights: (B, heads, T, T), of FusedSharedAttention; packed, of each utterance
            packed_lengths: frames of each utterance, of packed ones
        """
        value = self.in_proj(frames).to(self.dtype).unflatten(2, (self.num_heads, -1))
        value = value.permute(1, 2, 0, 3)  # T x B x H x D -> B x H x T x D
        if packed_lengths is None:
            attended = torch.matmul(weights, value)
        else:
            parts = zip(weights, value.split(packed_lengths, dim=2), strict=True)
            attended = torch.cat([torch.matmul(*part) for part in parts], dim=2)
        attended = attended.permute(2, 0, 1, 3).flatten(2)  # B x H x T x D -> T x B x C
        return attended.to(frames.dtype), None


class NoHeads(nn.Module):
    """Attention of a layer whose heads were all pruned: its bias, for every frame."""

    num_heads = 0

    def __init__(self, attention):
        super().__init__()
        self.head_dim = attention.head_dim
        self.out_proj = Constant(attention.out_proj.bias)

    def forward(self, frames, padding_mask=None, packed_lengths=None):
        return frames, None


def _for_out_proj(attended, frames):
    return attended.transpose(0, 1).to(frames.dtype)  # B x T x C -> T x B x C


def attend_in_parts(query, key, value, bias, padding_mask):
    """What :func:`attend` gives, by products and a softmax: in bf16 on CPUs faster than torch's
    fused kernel."""
    scores = torch.matmul(query * query.size(-1) ** -0.5, key.transpose(2, 3))
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask[:, None, None, :], -torch.inf)
    attended = torch.matmul(torch.softmax(scores, dim=-1), value)
    return attended.transpose(1, 2).flatten(2)  # B x H x T x D -> B x T x C
