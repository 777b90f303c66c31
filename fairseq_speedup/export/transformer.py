"""The transformer in a form that can be exported: frames (B, T, C) throughout, the padding mask
always applied, and no branch that depends on what a tensor holds."""

import torch
import torch.nn.functional as F
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from torch import nn
from torch.nn.utils import remove_weight_norm

from fairseq_speedup.export.front_end import resized
from fairseq_speedup.inference.attention import NoHeads
from fairseq_speedup.inference.layer import FusedLayer
from fairseq_speedup.inference.linear import stacked
from fairseq_speedup.lengths import multiple_length, padding_mask_of
from fairseq_speedup.transformer.relative_attention import RelativeAttention, bucket_of
from fairseq_speedup.transformer.token_merging import merge_frames


class ExportableLinear(nn.Linear):
    """As the linear layers of the inference forms."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "ExportableLinear":
        made = cls.__new__(cls)
        made.__dict__.update(linear.__dict__)
        return made

    def gelu(self, frames):
        return F.gelu(self(frames))


class ExportableAttention(nn.Module):
    """Takes the place of fairseq's MultiheadAttention, or of RelativeAttention.

    Args:
        attention: the one whose weights it takes
    """

    def __init__(self, attention):
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.in_proj = stacked([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out_proj = attention.out_proj
        with torch.no_grad():  # the products' scale
            queries = slice(0, self.num_heads * self.head_dim)
            self.in_proj.weight[queries] *= self.head_dim**-0.5
            self.in_proj.bias[queries] *= self.head_dim**-0.5
        self.relative = None
        if isinstance(attention, RelativeAttention):
            self.relative = attention
            attention.positions = DistanceBias.of(attention.positions)

    def forward(self, frames, mask):
        """
        Args:
            frames: (B, T, C)
            mask: (B, 1, 1, T), added to the products: 0, or -inf at padding
        """
        projected = self.in_proj(frames).unflatten(2, (3, self.num_heads, self.head_dim))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)  # B x H x T x D each
        scores = query @ key.transpose(2, 3)
        if self.relative is not None:
            scores = scores + self.relative.bias_of(frames)
        attended = torch.softmax(scores + mask, dim=-1) @ value
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # B x T x H x D -> B x T x C


class DistanceBias:
    """The bias of every distance up to the largest that has one of its own, looked up when the
    model is exported, as a logarithm that is rounded otherwise would give another bucket."""

    def __init__(self, positions):
        self.farthest = positions.max_distance
        distance = torch.arange(-self.farthest, self.farthest + 1)
        weight = positions.embedding.weight.detach()
        bucket = bucket_of(distance, weight.size(0), positions.max_distance)
        self.by_distance = weight[bucket].T.contiguous()  # (heads, distances)

    @classmethod
    def of(cls, positions):
        return positions if isinstance(positions, cls) else cls(positions)

    def bias(self, num_frames) -> torch.Tensor:
        """(heads, T, T)"""
        frame = torch.arange(num_frames)
        distance = frame[None, :] - frame[:, None]
        return self.by_distance[:, distance.clamp(-self.farthest, self.farthest) + self.farthest]


class ExportablePositions(nn.Module):
    """The positional convolutions, with weight norm folded.

    Args:
        pos_conv: fairseq's
        masked: padding is zero between several of them, see mask_between_positions
        stride: frames that were pooled into one
    """

    def __init__(self, pos_conv, masked: bool, stride: int):
        super().__init__()
        for module in pos_conv.modules():
            if hasattr(module, "weight_g"):
                remove_weight_norm(module)
        blocks = list(pos_conv) if isinstance(pos_conv[0], nn.Sequential) else [pos_conv]
        self.blocks = nn.ModuleList([nn.ModuleList(block) for block in blocks])
        self.masked = masked
        self.stride = stride

    def forward(self, frames, padding):
        """
        Args:
            frames: (B, T, C), zero at padding
            padding: (B, T)
        Returns:
            (B, T / stride, C)
        """
        frames = frames.transpose(1, 2)  # B x T x C -> B x C x T
        for position, block in enumerate(self.blocks):
            if position > 0 and self.masked:
                frames = frames.masked_fill(padding[:, None], 0)
            for module in block:
                frames = module(frames)
        return frames.transpose(1, 2)


class ExportableMerging:
    """What TokenMerging does after a layer.

    Args:
        merging: a TokenMerging
    """

    def __init__(self, merging):
        self.merging = merging
        self.layers = merging.layers

    def start(self, frames) -> None:
        """Call before the layers run, with what the first is given, (B, T, C)."""
        self.positions = torch.arange(frames.size(1)).expand(frames.size(0), -1)  # (B, T)
        self.sizes = torch.ones_like(frames[:, :, 0])  # (B, T')

    def after(self, index: int, hidden, lengths):
        """(B, T', C) and valid frames (B,) -> fewer of both"""
        merging = self.merging
        num_frames = hidden.size(1)
        num_merges = lengths - merging.lengths_after(index, lengths)
        merges = self._second_of_pairs(hidden, lengths, num_merges, merging.start_of(index))
        lengths = lengths - merges.long().sum(dim=1)
        longest = merging.lengths_after(index, num_frames)
        if not merging.known_lengths:
            longest = lengths.max()
        index_after = (~merges).long().cumsum(dim=1) - 1  # (B, T'): where each frame goes
        # merge_frames is time first: B x T x C -> T x B x C and back
        merged, sizes = merge_frames(hidden.transpose(0, 1), self.sizes.T, index_after.T)
        self.sizes = sizes.T[:, :longest]
        positions = index_after.gather(1, self.positions.clamp(max=num_frames - 1))
        self.positions = positions.clamp(max=longest - 1)
        return merged.transpose(0, 1)[:, :longest], lengths

    def _second_of_pairs(self, hidden, lengths, num_merges, start: int):
        """Mask (B, T') of frames that merge into the one before."""
        first, second = hidden[:, start:-1:2], hidden[:, start + 1 :: 2]
        similarity = F.cosine_similarity(first, second, dim=-1)
        pair = torch.arange(first.size(1))
        similarity = similarity.masked_fill(
            padding_mask_of((lengths - start) // 2, first.size(1)), -torch.inf
        )
        # the pairs before this one in falling order, the first of those that are equal
        ours, theirs = similarity[:, :, None], similarity[:, None, :]
        before = (theirs > ours) | ((theirs == ours) & (pair[None, :] < pair[:, None]))
        chosen = before.long().sum(dim=2) < num_merges[:, None]
        if not self.merging.known_lengths:
            chosen = chosen & (similarity > self.merging.threshold)
        pairs = torch.stack([torch.zeros_like(chosen), chosen], dim=2).flatten(1).long()
        missing = hidden.size(1) - pairs.size(1) - start
        return F.pad(pairs, (start, missing)).bool()

    def restore(self, hidden):
        """(B, T', C) -> (B, T, C): every frame of the beginning"""
        return hidden.gather(1, self.positions[:, :, None].expand(-1, -1, hidden.size(2)))


class ExportableTransformer(nn.Module):
    """Frames pooled -> positions -> layers, up to an exit -> frames restored.

    Args:
        encoder: a SpeedupEncoder, whose weights it takes
        indices: of the layers that are run
        masked: no padding between positional convolutions
    """

    def __init__(self, encoder, indices: list[int], masked: bool):
        super().__init__()
        transformer = encoder.w2v_model.encoder
        self.indices = indices
        layers = list(transformer.layers)[: len(indices)]
        self.layers = nn.ModuleList([exportable_layer(layer) for layer in layers])
        self.layer_norm = transformer.layer_norm
        self.layer_norm_first = transformer.layer_norm_first
        reduction = encoder.frame_reduction
        self.factor = reduction.factor
        self.pool = self.upsampling = None
        if self.factor > 1:
            self.pool = reduction.pools[str(self.factor)]
            self.upsampling = reduction.upsamplings[str(self.factor)]
        self.output_lengths = reduction.output_lengths
        self.pos_conv = None
        if transformer.pos_conv is not None:
            self.pos_conv = ExportablePositions(transformer.pos_conv, masked, self.factor)
        self.merging = None if encoder.merging is None else ExportableMerging(encoder.merging)

    def forward(self, frames, lengths):
        """
        Args:
            frames: (B, T, C)
            lengths: (B,), valid frames
        Returns:
            (B, T, C)
        """
        num_frames = frames.size(1)
        padding = padding_mask_of(lengths, num_frames)
        frames = frames.masked_fill(padding[:, :, None], 0)
        hidden = frames
        if self.pool is not None:
            frames = resized(frames, multiple_length(num_frames, self.factor))
            padding = padding_mask_of(lengths, frames.size(1))
            hidden = self.pool(frames, lengths)
            lengths = self.output_lengths(lengths)
            pooled_padding = padding_mask_of(lengths, hidden.size(1))
            hidden = hidden.masked_fill(pooled_padding[:, :, None], 0)
        if self.pos_conv is not None:
            hidden = hidden + self.pos_conv(frames, padding)
        if not self.layer_norm_first:
            hidden = self.layer_norm(hidden)
        hidden = self._run(hidden, lengths)
        if self.layer_norm_first:
            hidden = self.layer_norm(hidden)
        if self.upsampling is not None:
            hidden = self.upsampling(hidden)[:, :num_frames]
        return hidden

    def _run(self, hidden, lengths):
        mask = attention_mask(lengths, hidden)
        if self.merging is not None:
            self.merging.start(hidden)
        for position, layer in enumerate(self.layers):
            hidden, _ = layer(hidden, mask)
            index = self.indices[position]
            last = position + 1 == len(self.layers)
            if self.merging is not None and index in self.merging.layers and not last:
                hidden, lengths = self.merging.after(index, hidden, lengths)
                mask = attention_mask(lengths, hidden)
        return hidden if self.merging is None else self.merging.restore(hidden)


def attention_mask(lengths, frames):
    """(B, 1, 1, T) for frames (B, T, C): 0, or -inf at padding"""
    padding = padding_mask_of(lengths, frames.size(1))[:, None, None]
    return torch.zeros_like(padding, dtype=frames.dtype).masked_fill(padding, -torch.inf)


def exportable_layer(layer) -> nn.Module:
    """
    Raises:
        ValueError: a layer that cannot be exported
    """
    if type(layer) is not TransformerSentenceEncoderLayer:
        raise ValueError(f"an encoder of {type(layer).__name__} cannot be exported to ONNX")
    attention = layer.self_attn
    exportable = ExportableAttention(attention) if attention.num_heads else NoHeads(attention)
    return FusedLayer.of(layer, ExportableLinear.of, exportable)
