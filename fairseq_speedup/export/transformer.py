"""The transformer's layers in a form that can be exported: the padding mask always applied, and no
branch that depends on what a tensor holds."""

import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from torch import nn
from torch.nn.utils import remove_weight_norm

from fairseq_speedup.inference.attention import NoHeads
from fairseq_speedup.inference.layer import FusedLayer
from fairseq_speedup.inference.linear import FormLayer
from fairseq_speedup.inference.low_rank import beside, in_form, times
from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.layers import run_layers
from fairseq_speedup.transformer.path import TransformerPath
from fairseq_speedup.transformer.relative_attention import RelativeAttention, bucket_of
from fairseq_speedup.transformer.reused_attention import SharedAttention, reuses_map
from fairseq_speedup.transformer.stage import LayerStage


class ExportableLinear(FormLayer, nn.Linear):
    """As the linear layers of the inference forms."""

    @classmethod
    def of(cls, linear: nn.Linear, of_gelus: bool = False) -> "ExportableLinear":
        made = cls.__new__(cls)
        made.__dict__.update(linear.__dict__)
        return made


class ExportableAttention(nn.Module):
    """Takes the place of fairseq's MultiheadAttention, or of RelativeAttention.

    Args:
        attention: the one whose weights it takes
    """

    def __init__(self, attention):
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        query = times(attention.q_proj, self.head_dim**-0.5)  # the products' scale
        projections = [query, attention.k_proj, attention.v_proj]
        self.in_proj = beside(projections, ExportableLinear.of)
        self.out_proj = in_form(attention.out_proj, ExportableLinear.of)
        self.shares_map = isinstance(attention, SharedAttention)
        self.relative = None
        if isinstance(attention, RelativeAttention):
            self.relative = attention
            attention.positions = DistanceBias.of(attention.positions)

    def forward(self, frames, mask, packed_lengths=None):
        """
        Args:
            frames: (T, B, C)
            mask: (B, 1, 1, T), added to the products: 0, or -inf at padding
            packed_lengths: None; a graph packs nothing
        Returns:
            (T, B, C) for ``out_proj``, and what other layers weight their values by, where any does
        """
        projected = self.in_proj(frames).unflatten(2, (3, self.num_heads, self.head_dim))
        query, key, value = projected.permute(2, 1, 3, 0, 4).unbind(0)  # B x H x T x D each
        scores = query @ key.transpose(2, 3)
        if self.relative is not None:
            scores = scores + self.relative.bias_of(frames.transpose(0, 1))
        weights = torch.softmax(scores + mask, dim=-1)
        given = torch.softmax(weights + mask, dim=-1) if self.shares_map else None
        attended = (weights @ value).permute(2, 0, 1, 3).flatten(2)  # T x B x H x D -> T x B x C
        return attended, given


class ExportableReusedAttention(nn.Module):
    """Takes the place of ReusedAttention."""

    reuses_map = True

    def __init__(self, attention):
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.in_proj = in_form(attention.v_proj, ExportableLinear.of)
        self.out_proj = in_form(attention.out_proj, ExportableLinear.of)

    def forward(self, frames, weights, packed_lengths=None):
        """
        Args:
            frames: (T, B, C)
            weights: (B, heads, T, T), of an ExportableAttention
            packed_lengths: None
        """
        value = self.in_proj(frames).unflatten(2, (self.num_heads, self.head_dim))
        attended = weights @ value.permute(1, 2, 0, 3)  # B x H x T x D
        return attended.permute(2, 0, 1, 3).flatten(2), None  # -> T x B x C


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


class ExportableLayers(nn.Module):
    """Runs the layers up to the last that a graph has, and what stages do between them.

    Args:
        layers: fairseq's, whose weights it takes
        indices: theirs, in the model before layers were removed
        stages: in the form that can be traced
    """

    def __init__(self, layers: list[nn.Module], indices: list[int], stages: list[LayerStage]):
        super().__init__()
        self.layers = nn.ModuleList([exportable_layer(layer) for layer in layers])
        self.indices = indices
        self.stages = stages

    def forward(self, batch: FrameBatch) -> list:
        """See PaddedLayers."""
        masks = {}  # of the one padding mask that the batch has now

        def call(layer, batch, reused):
            if reused is not None:
                return layer(batch.hidden, reused)
            key = id(batch.padding_mask)
            if key not in masks:
                masks[key] = batch.padding_mask, attention_mask(batch.padding_mask, batch.hidden)
            return layer(batch.hidden, masks[key][1])

        num_run = len(self.indices)
        run_layers(enumerate(self.layers), self.indices, num_run, batch, self.stages, call)
        return []


class ExportableTransformer(nn.Module):
    """The path of the frames through the transformer, with layers that can be exported.

    Args:
        encoder: a SpeedupEncoder, whose weights it takes
        indices: of the layers that are run
    """

    def __init__(self, encoder, indices: list[int]):
        super().__init__()
        path = encoder.transformer
        transformer = path.encoder
        self.pos_conv = transformer.pos_conv
        if self.pos_conv is not None:
            remove_weight_norms(self.pos_conv)
        self.layer_norm = transformer.layer_norm
        self.layer_norm_first = transformer.layer_norm_first
        self.frame_reduction = encoder.frame_reduction
        exported = [stage.exportable() for stage in encoder.stages]
        stages = [stage for stage in exported if stage is not None]
        layers = list(transformer.layers)[: len(indices)]
        self.layers = ExportableLayers(layers, indices, stages)
        self.path = TransformerPath(
            self, self.frame_reduction, self.layers, len(indices), path.masked
        )

    def forward(self, frames, lengths):
        """
        Args:
            frames: (B, T, C)
            lengths: (B,), valid frames
        Returns:
            (B, T, C)
        """
        padding_mask = padding_mask_of(lengths, frames.size(1))
        hidden, _, _ = self.path(frames, lengths, padding_mask)
        return hidden


def remove_weight_norms(module: nn.Module) -> None:
    """Folds weight norm into the weights, in place."""
    for each in module.modules():
        if hasattr(each, "weight_g"):
            remove_weight_norm(each)


def attention_mask(padding_mask, hidden):
    """(B, 1, 1, T) of a mask (B, T), True at padding: 0, or -inf there"""
    padding = padding_mask[:, None, None]
    return torch.zeros_like(padding, dtype=hidden.dtype).masked_fill(padding, -torch.inf)


def exportable_layer(layer) -> nn.Module:
    """
    Raises:
        ValueError: a layer that cannot be exported
    """
    if type(layer) is not TransformerSentenceEncoderLayer:
        raise ValueError(f"an encoder of {type(layer).__name__} cannot be exported")
    attention = layer.self_attn
    kind: type[nn.Module] = ExportableAttention
    if attention.num_heads == 0:
        kind = NoHeads
    elif reuses_map(layer):
        kind = ExportableReusedAttention
    return FusedLayer.of(layer, ExportableLinear.of, kind(attention))
