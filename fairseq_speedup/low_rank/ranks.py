"""The ranks of an encoder's layers, as the config of its pretraining has them:
``encoder_variant.low_rank`` with

- ``share``, of the MACs that it had, for an utterance of 10 seconds,
- ``ranks``, for each layer those of its linear layers of low rank, by name.
"""

from fairseq.modules import MultiheadAttention

from fairseq_speedup.checkpoints.configs import encoder_variant
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.low_rank.linear import LowRankLinear
from fairseq_speedup.pruning.attention import SomeHeads

FIELD = "encoder_variant.low_rank"
OF_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
OF_FEED_FORWARD = ("fc1", "fc2")
LINEARS = OF_ATTENTION + OF_FEED_FORWARD


def low_rank_of(pretraining) -> dict | None:
    """What a pretraining's config says of low ranks, or None."""
    return encoder_variant(pretraining, "low_rank")


def linears_of(layer) -> dict:
    """The linear layers of a transformer layer that can have a low rank, by name: none where all
    heads or all units were pruned."""
    return {
        name: linear
        for name in LINEARS
        if (linear := getattr(_owner(layer, name), name)).weight.numel()
    }


def replace(layer, name: str, linear) -> None:
    """Puts another linear layer into a transformer layer, in place."""
    setattr(_owner(layer, name), name, linear)


def call_projections(layer) -> None:
    """Makes attention call its projections as modules, in place: fairseq's hands their weights to
    a function of torch."""
    if type(layer.self_attn) is MultiheadAttention:
        layer.self_attn = SomeHeads(layer.self_attn)


def lower_ranks(transformer, low_rank) -> None:
    """Gives fairseq's transformer layers of the ranks that a config says, with weights of no
    meaning, in place.

    Raises:
        CheckpointError: ranks that they cannot have
    """
    ranks = low_rank.get("ranks") or []
    for position, layer in enumerate(transformer.layers):
        if position >= len(ranks):
            raise CheckpointError(f"{FIELD}.ranks has nothing for layer {position}")
        for name, rank in dict(ranks[position]).items():
            if name not in LINEARS:
                raise CheckpointError(
                    f"{FIELD}.ranks: layer {position} has no {name}; valid names: "
                    f"{', '.join(LINEARS)}"
                )
            linear = getattr(_owner(layer, name), name)
            most = min(linear.in_features, linear.out_features)
            if type(rank) is not int or not 1 <= rank <= most:
                raise CheckpointError(
                    f"{FIELD}.ranks: {name} of layer {position} has {rank}, which is no number "
                    f"from 1 to {most}"
                )
            if name in OF_ATTENTION:
                call_projections(layer)
            replace(layer, name, LowRankLinear(linear.in_features, linear.out_features, rank))


def _owner(layer, name: str):
    return layer.self_attn if name in OF_ATTENTION else layer
