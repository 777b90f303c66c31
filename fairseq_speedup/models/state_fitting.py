"""Fits a checkpoint to a model whose reductions are others than it was trained with."""

import logging

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.config import DEFAULTS
from fairseq_speedup.pruning.gates import fit_gates
from fairseq_speedup.pruning.narrowing import narrow_weights
from fairseq_speedup.transformer.layer_removal import KeptLayers, drop_removed_layers
from fairseq_speedup.waveform.switched import module_name

logger = logging.getLogger(__name__)

PREFIX = "w2v_encoder."
# weights -> the options that decide whether a model has them, and of what shape
OPTIONS = {
    "w2v_model.encoder.layers.": "keep_layers",
    "waveform_reduction.": "downsample, downsample_factor, downsample_factors",
    "fbank.": "frontend, frontend_frame_ms",
    "w2v_model.feature_extractor.": "frontend",
    "frame_reduction.": "frame_pool_method",
    "pruning.": "prune_target, prune_parts",
    "proj.": "head, head_dim, logit_upsample, or the dictionary",
    "exit_heads.": "head, head_dim, logit_upsample, or the dictionary",
}


class MisfitError(CheckpointError):
    """Weights of another value of some options.

    Args:
        reason: which weights, and how they differ
        options: in words
    """

    def __init__(self, reason: str, options: str):
        super().__init__(
            f"{reason}: the checkpoint was trained with another value of model options {options}; "
            "give those that it was trained with"
        )
        self.options = [name for name in options.split(", ") if name in DEFAULTS]


def fit_state(state_dict: dict, model) -> None:
    """Leaves out what the model lacks, and begins what the checkpoint lacks where that has a
    meaning without training; in place.

    - parts that the model's width lacks are left out
    - reductions of the waveform by factors that the model does not have are left out
    - layers that are removed are left out; if the last that is kept has an exit in the
      checkpoint, the head of that exit becomes the model's
    - exit heads that are not wanted are left out; one that is missing begins as the last head
    - frame pooling that is not wanted is left out; one that is missing begins as mean and
      repetition
    - gates that are missing begin open

    Raises:
        MisfitError: weights that are missing or of another shape otherwise, with the option that
            decides
    """
    encoder = model.w2v_encoder
    _narrow(state_dict, model)
    if not model.cfg.depths:  # at any depth of many it is the last head that decides
        _take_head_of_last_layer(state_dict, encoder)
    if isinstance(encoder.w2v_model.encoder.layers, KeptLayers):
        prefix = f"{PREFIX}w2v_model.encoder.layers."
        drop_removed_layers(state_dict, prefix, encoder.kept_layers)
    _fit_exit_heads(state_dict, getattr(encoder, "exit_heads", {}))
    ours = model.state_dict()
    _take_factors(state_dict, ours, module_name(model.cfg.downsample_factor))
    _fit_waveform_reduction(state_dict, ours)
    _fit_frame_reduction(state_dict, ours)
    fit_gates(state_dict, ours, f"{PREFIX}pruning.")
    _check(state_dict, ours)


def _narrow(state_dict: dict, model) -> None:
    """Of weights of a whole model, those of the width that was chosen."""
    encoder = model.w2v_encoder
    if encoder.narrowed is None:
        return
    ours, prefix = model.state_dict(), f"{PREFIX}w2v_model."
    theirs = {name: weight for name, weight in state_dict.items() if name.startswith(prefix)}
    if any(name in ours and ours[name].shape != theirs[name].shape for name in theirs):
        num_heads = model.cfg.w2v_args.model.encoder_attention_heads
        narrow_weights(state_dict, encoder.narrowed, num_heads, prefix)


def _take_head_of_last_layer(state_dict: dict, encoder) -> None:
    """Where layers are cut after one with an exit, the head of that exit becomes the last."""
    prefix, last = f"{PREFIX}exit_heads.{encoder.kept_layers[-1]}.", f"{PREFIX}proj."
    head = [key for key in state_dict if key.startswith(prefix)]
    if head:
        logger.warning("layers are cut after exit %s: its head decides", encoder.kept_layers[-1])
        for key in head:
            state_dict[last + key[len(prefix) :]] = state_dict[key]


def _fit_exit_heads(state_dict: dict, exit_heads) -> None:
    prefix, last = f"{PREFIX}exit_heads.", f"{PREFIX}proj."
    for key in [key for key in state_dict if key.startswith(prefix)]:
        if key[len(prefix) :].split(".")[0] not in exit_heads:
            del state_dict[key]
    for index in exit_heads:
        if not any(key.startswith(f"{prefix}{index}.") for key in state_dict):
            logger.warning("the checkpoint has no head for exit %s: it starts as the last", index)
            for key in [key for key in state_dict if key.startswith(last)]:
                state_dict[f"{prefix}{index}.{key[len(last) :]}"] = state_dict[key].clone()


def _take_factors(state_dict: dict, ours: dict, chosen: str) -> None:
    """Of reductions of several factors, those that the model has; where one of the two has several
    and the other one, that of this one's factor.

    Args:
        chosen: name of the model's factor among several
    """
    one = f"{PREFIX}waveform_reduction."
    several, of_chosen = f"{one}reductions.", f"{one}reductions.{chosen}."
    theirs = [key for key in state_dict if key.startswith(one)]
    for key in theirs:
        if key.startswith(of_chosen):
            name = one + key[len(of_chosen) :]
        elif not key.startswith(several):
            name = of_chosen + key[len(one) :]
        else:
            name = key
        if key not in ours and name in ours:
            state_dict[name] = state_dict.pop(key)
    if any(key.startswith(one) for key in ours):
        for key in theirs:
            if key.startswith(several) and key not in ours:
                state_dict.pop(key, None)


def _fit_waveform_reduction(state_dict: dict, ours: dict) -> None:
    """A checkpoint older than the record of its factor is taken to have the model's."""
    factors = [key for key in ours if key.startswith(f"{PREFIX}waveform_reduction.")]
    for key in factors:
        kernel = key.replace(".factor", ".conv.weight")
        if key.endswith(".factor") and kernel in state_dict:
            state_dict.setdefault(key, ours[key].clone())


def _fit_frame_reduction(state_dict: dict, ours: dict) -> None:
    prefix = f"{PREFIX}frame_reduction."
    unwanted = [key for key in state_dict if key.startswith(prefix) and key not in ours]
    if unwanted:
        logger.warning(
            "the checkpoint was trained with another frame_pool, frame_pools or "
            "frame_pool_method: %d weights of its frame pooling are left out",
            len(unwanted),
        )
    for key in unwanted:
        del state_dict[key]
    missing = [key for key in ours if key.startswith(prefix) and key not in state_dict]
    if missing:
        logger.warning(
            "the checkpoint was not trained with this frame_pool: frames are averaged and repeated"
        )
    for key in missing:
        state_dict[key] = ours[key].clone()


def _check(state_dict: dict, ours: dict) -> None:
    for prefix, options in OPTIONS.items():
        keys = [key for key in {**ours, **state_dict} if key.startswith(f"{PREFIX}{prefix}")]
        for key in keys:
            if key not in state_dict or key not in ours:
                has, lacks = ("model", "checkpoint") if key in ours else ("checkpoint", "model")
                reason = f"the {has} has {key}, which the {lacks} lacks"
            elif key.endswith(".factor") and state_dict[key] != ours[key]:
                factors = int(state_dict[key]), int(ours[key])
                reason = f"{key} is {factors[0]} in the checkpoint and {factors[1]} in the model"
            elif state_dict[key].shape != ours[key].shape:
                theirs, shape = tuple(state_dict[key].shape), tuple(ours[key].shape)
                reason = f"{key} is {theirs} in the checkpoint and {shape} in the model"
            else:
                continue
            raise MisfitError(reason, options)
