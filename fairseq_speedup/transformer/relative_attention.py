"""Self-attention with a gated relative position bias, as in WavLM (arXiv 2110.13900, section 3.2).

A learned bias for each head and each bucket of distances is shared by all layers; each layer scales
it for every frame by a gate, a function of what the frame holds.
"""

import contextlib
import math

import torch
from torch import nn

from fairseq_speedup.transformer.attention import attend


def bucket_of(distance: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Bucket of a signed distance in frames: half of the buckets for each direction; in each, half
    for one distance apiece and half spaced logarithmically up to ``max_distance``."""
    half = num_buckets // 2
    exact = half // 2
    length = distance.abs()
    logarithmic = exact + (
        torch.log(length.float().clamp(min=1) / exact)
        / math.log(max_distance / exact)
        * (half - exact)
    ).to(torch.long)
    bucket = torch.where(length < exact, length, logarithmic.clamp(max=half - 1))
    return bucket + (distance > 0) * half


class RelativePositions:
    """The bias of all layers.

    Args:
        embedding: (buckets, heads), learned
        max_distance: in frames
    """

    def __init__(self, embedding: nn.Embedding, max_distance: int):
        self.embedding = embedding
        self.max_distance = max_distance
        self._shared: torch.Tensor | None = None
        self._sharing = False

    @contextlib.contextmanager
    def shared(self):
        """Within this, layers that run without autograd look the bias up once. With it each has one
        of its own: a layer may be run again in the backward pass (checkpoint_activations), and a
        graph is gone through once."""
        self._sharing = True
        try:
            yield
        finally:
            self._sharing, self._shared = False, None

    def bias(self, num_frames: int) -> torch.Tensor:
        """(heads, T, T)"""
        if not self._sharing or torch.is_grad_enabled():
            return self._look_up(num_frames)
        if self._shared is None or self._shared.size(1) < num_frames:
            self._shared = self._look_up(num_frames)
        return self._shared[:, :num_frames, :num_frames]

    def _look_up(self, num_frames: int) -> torch.Tensor:
        weight = self.embedding.weight
        distance = torch.arange(1 - num_frames, num_frames, device=weight.device)
        by_distance = weight[bucket_of(distance, weight.size(0), self.max_distance)]
        # window i of the table is what frame T - 1 - i has for the distances to every other
        return by_distance.T.unfold(1, num_frames, 1).flip(1)


def sharing_positions(encoder: nn.Module):
    """A context in which the layers of fairseq's transformer share their relative positions, if
    they have any."""
    positions = getattr(encoder, "relative_positions", None)
    return contextlib.nullcontext() if positions is None else positions.shared()


class RelativeAttention(nn.Module):
    """Takes the place of fairseq's MultiheadAttention in an encoder layer, with its projections.

    Args:
        attention: fairseq's
        positions: shared by the layers
        gated: whether the bias is scaled by each frame's gate
    """

    def __init__(self, attention, positions: RelativePositions, gated: bool):
        super().__init__()
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim
        self.dropout_module = attention.dropout_module
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, getattr(attention, name))
        self.positions = positions
        self.gated = gated
        if gated:
            self.grep_linear = nn.Linear(self.head_dim, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))

    def forward(self, query, key=None, value=None, key_padding_mask=None, **unused):
        """
        Args:
            query: (T, B, C); key and value are the same
            key_padding_mask: (B, T), True at padding, or None
        Returns:
            (T, B, C), and None for the weights
        """
        batch_first = query.transpose(0, 1)  # T x B x C -> B x T x C
        q, k, v = (
            self._heads(projection(batch_first))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = self.bias_of(batch_first)
        dropout_prob = self.dropout_module.p if self.training else 0.0
        attended = attend(q, k, v, bias, key_padding_mask, dropout_prob)
        return self.out_proj(attended).transpose(0, 1), None

    def bias_of(self, frames):
        """Bias (B or 1, heads, T, T) of frames (B, T, C)"""
        bias = self.positions.bias(frames.size(1))
        return self._gate(self._heads(frames)) * bias if self.gated else bias[None]

    def _heads(self, frames):
        """(B, T, C) -> (B, heads, T, C / heads)"""
        return frames.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _gate(self, frames):
        """Factor (B, heads, T, 1) of each frame's bias, from what it holds."""
        halves = self.grep_linear(frames).unflatten(3, (2, 4)).sum(dim=4)
        update, reset = torch.sigmoid(halves).chunk(2, dim=3)
        return update * (reset * self.grep_a - 1.0) + 2.0

    def macs_per_frame(self) -> int:
        """Multiply-accumulates of the gate."""
        return self.num_heads * self.grep_linear.weight.numel() if self.gated else 0


def use_relative_positions(encoder, num_buckets: int, max_distance: int, gated: bool) -> None:
    """Gives fairseq's transformer this attention, in place; the shared bias is a module of the
    encoder, as any of its layers may be removed."""
    num_heads = encoder.layers[0].self_attn.num_heads
    encoder.relative_attention_bias = nn.Embedding(num_buckets, num_heads)
    positions = RelativePositions(encoder.relative_attention_bias, max_distance)
    for layer in encoder.layers:
        layer.self_attn = RelativeAttention(layer.self_attn, positions, gated)
    encoder.relative_positions = positions
