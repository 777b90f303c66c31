"""Attention maps that layers reuse, as in ARMHuBERT (arXiv 2305.11685): a layer has queries and
keys of its own, or weights its values by the last map that a layer before it computed.

The config of a pretraining has, as ``encoder_variant.reused_attention``,

- ``computes``, for each layer whether it computes its own map.

In the paper a map weights values as it is; in the code that the published models were trained with
it goes through the softmax once more first, and so it does here: their weights know nothing else.
"""

import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from torch import nn

from fairseq_speedup.checkpoints.configs import encoder_variant
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.transformer.attention import SelfAttention

FIELD = "encoder_variant.reused_attention"


def reused_of(pretraining) -> dict | None:
    """What a pretraining's config says of maps that are reused, or None."""
    return encoder_variant(pretraining, "reused_attention")


def check_computes(computes, num_layers: int, name: str) -> None:
    """
    Args:
        computes: for each layer, whether it computes its own map
        name: of the field, for messages
    Raises:
        CheckpointError: no such list, or one whose first layer has no map to reuse
    """
    if not isinstance(computes, list | tuple) or not all(type(each) is bool for each in computes):
        raise CheckpointError(
            f"{name}={str(computes)[:100]} is no list with True for each layer that computes its "
            "attention map and False for each that reuses the last one"
        )
    if len(computes) != num_layers:
        raise CheckpointError(
            f"{name} has {len(computes)} values; it must have one for each of the {num_layers} "
            "layers"
        )
    if not computes[0]:
        raise CheckpointError(
            f"{name} begins with False: the first layer has no map to reuse; it must be True"
        )


def reuse_maps(encoder, reused) -> None:
    """Gives the layers of fairseq's transformer that reuse a map attention without queries and
    keys, with weights of no meaning, in place.

    Raises:
        CheckpointError: a config that says nothing of these layers
        ValueError: layers that are run otherwise than one after another
    """
    layers = encoder.layers
    computes = reused.get("computes")
    check_computes(computes, len(layers), f"{FIELD}.computes")
    for position, layer in enumerate(layers):
        if type(layer) is not TransformerSentenceEncoderLayer:
            raise ValueError(
                f"{FIELD}: layers that reuse attention maps are fairseq's transformer layers; this "
                f"model has {type(layer).__name__}: set layer_type=transformer, and another "
                "ddp_backend than fully_sharded"
            )
        if hasattr(layer, "precheckpoint_forward"):
            raise ValueError(
                "checkpoint_activations=true: a layer that reuses an attention map would be run "
                "again without it; set checkpoint_activations=false"
            )
        if not computes[position]:
            layer.self_attn = ReusedAttention(layer.self_attn)
        elif not all(computes[position + 1 : position + 2]):  # the next one reuses
            layer.self_attn = SharedAttention(layer.self_attn)


def attend_and_share(q, k, v, key_padding_mask=None, dropout=lambda weights: weights):
    """Softmax attention, and its map for others.

    Args:
        q, k, v: (B, heads, T, C / heads)
        key_padding_mask: (B, T), True at padding, or None
        dropout: of the map, for this layer alone
    Returns:
        (B, T, C), and what layers that reuse the map weight their values by (B, heads, T, T), zero
        at padding
    """
    padding = None if key_padding_mask is None else key_padding_mask[:, None, None, :]
    scores = torch.matmul(q * q.size(-1) ** -0.5, k.transpose(2, 3))
    weights = _softmax(scores.float() if scores.dtype.itemsize < 4 else scores, padding)
    attended = torch.matmul(dropout(weights).to(v.dtype), v)
    attended = attended.transpose(1, 2).flatten(2)  # B x H x T x D -> B x T x C
    return attended, _softmax(weights, padding).to(v.dtype)


def _softmax(values, padding):
    """Over the last dimension, zero where there is padding; without autograd in place: to be given
    memory for a map takes longer than to compute it."""
    if torch.is_grad_enabled():
        masked = values if padding is None else values.masked_fill(padding, -torch.inf)
        return torch.softmax(masked, dim=-1)
    if padding is not None:
        values.masked_fill_(padding, -torch.inf)
    values.sub_(values.amax(dim=-1, keepdim=True)).exp_()
    return values.div_(values.sum(dim=-1, keepdim=True))


class SharedAttention(SelfAttention):
    """SelfAttention of a layer whose map others reuse."""

    shares_map = True

    def forward(self, query, key=None, value=None, key_padding_mask=None, **unused):
        """As SelfAttention's, and in place of None what other layers weight their values by
        (B, heads, T, T)."""
        q, k, v = self.projected(query.transpose(0, 1))  # T x B x C -> B x T x C
        attended, given = attend_and_share(q, k, v, key_padding_mask, self.dropout_module)
        return self.out_proj(attended).transpose(0, 1), given


class ReusedAttention(nn.Module):
    """Takes the place of fairseq's MultiheadAttention in a layer that reuses the map of another. It
    is given what the map makes of it where others are given their padding mask.

    Args:
        attention: fairseq's, of which it takes the projections of values and of what comes out
    """

    reuses_map = True
    projections = ("v_proj", "out_proj")
    num_products = 1  # of weights and values

    def __init__(self, attention):
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.v_proj, self.out_proj = attention.v_proj, attention.out_proj

    def forward(self, query, key=None, value=None, key_padding_mask=None, **unused):
        """
        Args:
            query: (T, B, C); key and value are the same
            key_padding_mask: the weights (B, heads, T, T) of SharedAttention
        Returns:
            (T, B, C), and None for weights of its own
        Raises:
            ValueError: no weights
        """
        weights = key_padding_mask
        if weights is None or weights.dim() != 4:
            raise ValueError(
                "a layer that reuses the attention map of another was given none: fairseq's own "
                "loop over layers hands none on; speedup_ctc's does"
            )
        frames = query.transpose(0, 1)  # T x B x C -> B x T x C
        v = self.v_proj(frames).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        attended = torch.matmul(weights.to(v.dtype), v).transpose(1, 2).flatten(2)
        return self.out_proj(attended).transpose(0, 1), None


def check_own_attention(path: str, pretraining) -> None:
    """Raises CheckpointError for an encoder some of whose layers have neither queries nor keys.

    Args:
        path: of its checkpoint, for messages
        pretraining: its config
    """
    if reused_of(pretraining) is not None:
        raise CheckpointError(
            f"{path}: its layers reuse the attention maps of others ({FIELD}), for which this is "
            "not made; model.w2v_path takes it, and --inference and export make it faster"
        )


# -- of layers, whatever form they are in ---------------------------------------------------------


def reuses_map(layer) -> bool:
    return getattr(getattr(layer, "self_attn", None), "reuses_map", False)


def shares_map(layer) -> bool:
    return getattr(getattr(layer, "self_attn", None), "shares_map", False)


def check_kept(layers, kept: list[int], option: str) -> None:
    """
    Args:
        layers: all of the model
        kept: indices of those that stay
        option: that says so, for messages
    Raises:
        ValueError: a layer goes whose map another reuses that stays
    """
    source = 0
    for index, layer in enumerate(layers):
        if not reuses_map(layer):
            source = index
        elif index in kept and source not in kept:
            raise ValueError(
                f"{option} leaves layer {source} out, whose attention map layer {index} reuses: "
                f"keep both, or leave layer {index} out too"
            )


def check_own_maps(layers, option: str, off: str) -> None:
    """Raises ValueError for layers that reuse maps of frames that would have changed since.

    Args:
        option: with its value
        off: what switches it off
    """
    if any(map(reuses_map, layers)):
        raise ValueError(
            f"{option}: layers of this model reuse the attention maps of others, which are of as "
            f"many frames as those had: set {off}"
        )
