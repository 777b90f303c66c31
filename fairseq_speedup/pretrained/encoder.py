"""fairseq's wav2vec 2.0 model of a pretrained encoder, with what its family does otherwise."""

from fairseq import tasks
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.frontend.scaled_norm import ScaledLayerNorm
from fairseq_speedup.low_rank.ranks import low_rank_of, lower_ranks
from fairseq_speedup.pruning.sizes import pruned_of, shrink
from fairseq_speedup.transformer.relative_attention import use_relative_positions
from fairseq_speedup.transformer.reused_attention import FIELD as REUSED
from fairseq_speedup.transformer.reused_attention import reuse_maps, reused_of

OTHER_ATTENTION = ("relative_positions", "pruned", "low_rank", "widths")


def build_encoder(pretraining: DictConfig):
    """The model of a pretraining config, for its features alone, without weights."""
    # its data are of no interest, and may not be here
    cfg = OmegaConf.merge(pretraining, {"task": {"data": ""}})
    task = tasks.setup_task(cfg.task, from_checkpoint=True)
    model = task.build_model(cfg.model, from_checkpoint=True)
    model.remove_pretraining_modules()
    model.crop_seq_to_multiple = 1
    adapt(model, pretraining)
    return model


def adapt(w2v_model, pretraining: DictConfig) -> None:
    """Makes what the family does otherwise than wav2vec 2.0, in place.

    Raises:
        CheckpointError: a config that no encoder can be of
    """
    variant = pretraining.get("encoder_variant") or {}
    if not variant.get("feature_layer_norm", True):
        w2v_model.layer_norm = nn.Identity()
    if variant.get("feature_scale", False):
        w2v_model.layer_norm = ScaledLayerNorm.of(w2v_model.layer_norm)
    reused = reused_of(pretraining)
    if reused is not None:
        others = [name for name in OTHER_ATTENTION if variant.get(name)]
        if others:
            raise CheckpointError(f"{REUSED} does not go together with {', '.join(others)}")
        reuse_maps(w2v_model.encoder, reused)
    positions = variant.get("relative_positions")
    if positions is not None:
        use_relative_positions(w2v_model.encoder, **positions)
    pruned = pruned_of(pretraining)
    if pruned is not None:
        shrink(w2v_model, pruned)
    low_rank = low_rank_of(pretraining)
    if low_rank is not None:
        lower_ranks(w2v_model.encoder, low_rank)


def keep_layer_type(cfg) -> None:
    """Gives a fine-tuning config the ``layer_type`` of a pretrained Conformer, in place: fairseq
    builds the encoder with fine-tuning's, which is ``transformer`` unless it is set.

    Raises:
        ValueError: a ``layer_type`` that the pretrained model cannot have
    """
    pretrained = cfg.w2v_args.model.get("layer_type", "transformer")
    if "conformer" not in (pretrained, cfg.layer_type):
        return  # trf_adp puts new adapters into a transformer
    if cfg.layer_type not in (pretrained, "transformer"):
        raise ValueError(
            f"layer_type={cfg.layer_type} with a pretrained {pretrained}: leave layer_type out"
        )
    cfg.layer_type = pretrained


def load_weights(w2v_model, weights: dict, source: str) -> None:
    """Copies an encoder's weights into its model; ``source`` names them in messages.

    Raises:
        CheckpointError: weights that are missing, unknown or of another shape, by name
    """
    check_weights(w2v_model, weights, source)
    w2v_model.load_state_dict(weights, strict=True)


def check_weights(w2v_model, weights: dict, source: str) -> None:
    """What :func:`load_weights` raises, of a model that may be on the meta device."""
    ours = w2v_model.state_dict()
    missing = [name for name in ours if name not in weights]
    unknown = [name for name in weights if name not in ours]
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(ours[name].shape)}"
        for name in ours
        if name in weights and weights[name].shape != ours[name].shape
    ]
    found = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    reasons = [f"{kind}: {first_of(names)}" for kind, names in found if names]
    if reasons:
        raise CheckpointError(f"{source}: its weights do not fit its config; {'; '.join(reasons)}")


def first_of(names: list[str], count: int = 3) -> str:
    """Some names for a message, and how many there are beside."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
