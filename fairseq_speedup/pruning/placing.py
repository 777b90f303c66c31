"""Puts gates into an encoder's layers, that scale what the layers read."""

from collections.abc import Mapping

from torch import nn

from fairseq_speedup.pruning.attention import SomeHeads
from fairseq_speedup.pruning.gated import GatedConv1d, GatedLinear, OpenLayerNorm
from fairseq_speedup.transformer.relative_attention import RelativeAttention


def place_gates(encoder, channels: Mapping, heads: Mapping, units: Mapping) -> None:
    """Puts gates into the layers that follow what they close, in place: a channel of the CNN is
    scaled where the next convolution, or the projection, reads it.

    Args:
        encoder: a SpeedupEncoder
        channels: gates by the convolution's position
        heads, units: by the layer's index
    """
    w2v_model = encoder.w2v_model
    for position, gate in channels.items():
        blocks = w2v_model.feature_extractor.conv_layers
        block = blocks[position]
        if isinstance(block[2], nn.Sequential):  # layer norm between two transposes
            block[2][1] = OpenLayerNorm.of(block[2][1], gate)
        if position + 1 < len(blocks):
            blocks[position + 1][0] = GatedConv1d.of(blocks[position + 1][0], gate)
            continue
        if isinstance(w2v_model.layer_norm, nn.LayerNorm):
            w2v_model.layer_norm = OpenLayerNorm.of(w2v_model.layer_norm, gate)
        w2v_model.post_extract_proj = GatedLinear.of(w2v_model.post_extract_proj, gate)
    for index, layer in zip(encoder.kept_layers, w2v_model.encoder.layers, strict=True):
        if index in heads:
            if not isinstance(layer.self_attn, RelativeAttention):
                layer.self_attn = SomeHeads(layer.self_attn)
            attention = layer.self_attn
            attention.out_proj = GatedLinear.of(
                attention.out_proj, heads[index], attention.head_dim
            )
        if index in units:
            layer.fc2 = GatedLinear.of(layer.fc2, units[index])
