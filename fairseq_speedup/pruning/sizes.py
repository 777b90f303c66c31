"""The sizes of an encoder that was cut, as the config of its pretraining has them:
``encoder_variant.pruned`` with

- ``share``, of the MACs that it had, where that is known,
- ``heads``, for each layer the indices of those kept, where any is missing in any layer,
- ``units``, for each layer their number, where it is not one for all,
- ``projected``, where the CNN is left with as many channels as the transformer's frames have, for
  which fairseq makes no projection: there was one, and is.

The CNN's are in ``conv_feature_layers``, and ``encoder_ffn_embed_dim`` is the number of units where
that is one for all.
"""

import warnings

from torch import nn

from fairseq_speedup.checkpoints.configs import encoder_variant, evaluate
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.pruning.attention import SomeHeads, SomeRelativeHeads
from fairseq_speedup.transformer.relative_attention import RelativeAttention

FIELD = "encoder_variant.pruned"


def pruned_of(pretraining) -> dict | None:
    """What a pretraining's config says of its cut, or None."""
    return encoder_variant(pretraining, "pruned")


def expects_projection(model, num_channels: int) -> bool:
    """Whether fairseq would leave out the projection of a pretrained model that has one, once its
    CNN has ``num_channels``.

    Args:
        model: options of the pretrained model, with its CNN as it was
    """
    was = evaluate(model.conv_feature_layers, "conv_feature_layers")[-1][0]
    return num_channels == model.encoder_embed_dim != was


def shrink(w2v_model, pruned) -> None:
    """Gives fairseq's encoder layers of the sizes ``pruned``, with weights of no meaning, in place.

    Raises:
        CheckpointError: sizes that it cannot have
    """
    if pruned.get("projected") and w2v_model.post_extract_proj is None:
        w2v_model.post_extract_proj = linear(w2v_model.embed, w2v_model.encoder.embedding_dim)
    layers = w2v_model.encoder.layers
    heads, units = pruned.get("heads"), pruned.get("units")
    for position, layer in enumerate(layers):
        if heads is not None:
            keep_heads(layer, _heads(heads, position, layer.self_attn.num_heads))
        if units is not None:
            keep_units(layer, _units(units, position, layer.fc1.out_features))


def _heads(heads, position: int, num_heads: int) -> list[int]:
    kept = list(heads[position]) if len(heads) > position else None
    valid = kept is not None and all(type(head) is int and 0 <= head < num_heads for head in kept)
    if kept is None or not valid or sorted(set(kept)) != kept:
        raise CheckpointError(
            f"{FIELD}.heads: for layer {position} it has {kept}, which are none of its "
            f"{num_heads} heads in rising order"
        )
    return kept


def _units(units, position: int, most: int) -> int:
    count = units[position] if len(units) > position else None
    if type(count) is not int or not 0 <= count <= most:
        raise CheckpointError(
            f"{FIELD}.units: for layer {position} it has {count}, which is no number from 0 to "
            f"{most}"
        )
    return count


def keep_heads(layer, kept: list[int]) -> None:
    """Room for the weights of the heads ``kept`` of a layer."""
    attention = layer.self_attn
    width, dim = attention.out_proj.out_features, len(kept) * attention.head_dim
    if isinstance(attention, RelativeAttention):
        layer.self_attn = attention = SomeRelativeHeads(attention, kept)
        if attention.gated:
            attention.grep_a = nn.Parameter(attention.grep_a[:, kept].detach())
    else:
        layer.self_attn = attention = SomeHeads(attention, len(kept))
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, name, linear(width, dim))
    attention.out_proj = linear(dim, width)


def keep_units(layer, num_units: int) -> None:
    """Room for the weights of ``num_units`` units of a layer."""
    width = layer.fc2.out_features
    layer.fc1, layer.fc2 = linear(width, num_units), linear(num_units, width)


def linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of those without inputs or outputs
        return nn.Linear(num_inputs, num_outputs)
