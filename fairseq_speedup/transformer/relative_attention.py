"""Self-attention with a gated relative position bias, as in WavLM (arXiv 2110.13900, section 3.2).

A learned bias for each head and each bucket of distances is shared by all layers; each layer scales
it for every frame by a gate, a function of what the frame holds.
"""

import contextlib
import math
import threading

import torch
from torch import nn

from fairseq_speedup.transformer.attention import SelfAttention


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
        # of each thread that shares one: the bias, once it is looked up
        self._shared: dict[int, torch.Tensor | None] = {}

    @contextlib.contextmanager
    def shared(self):
        """Within this, layers that run without autograd look the bias up once. With it each has one
        of its own: a layer may be run again in the backward pass (checkpoint_activations), and a
        graph is gone through once."""
        thread = threading.get_ident()
        self._shared[thread] = None
        try:
            yield
        finally:
            self._shared.pop(thread, None)

    def bias(self, num_frames: int) -> torch.Tensor:
        """(heads, T, T)"""
        thread = threading.get_ident()
        if thread not in self._shared or torch.is_grad_enabled():
            return self._look_up(num_frames)
        shared = self._shared[thread]
        if shared is None or shared.size(1) < num_frames:
            shared = self._shared[thread] = self._look_up(num_frames)
        return shared[:, :num_frames, :num_frames]

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


class RelativeAttention(SelfAttention):
    """
    Args:
        attention: fairseq's, whose projections it takes
        positions: shared by the layers
        gated: whether the bias is scaled by each frame's gate
    """

    def __init__(self, attention, positions: RelativePositions, gated: bool):
        super().__init__(attention)
        self.positions = positions
        self.gated = gated
        if gated:
            self.grep_linear = nn.Linear(self.head_dim, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))

    def bias_of(self, frames):
        bias = self.positions.bias(frames.size(1))
        return self._gate(self.heads_of(frames)) * bias if self.gated else bias[None]

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
