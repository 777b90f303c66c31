"""Reads the checkpoint that ``model.w2v_path`` names."""

import logging
import os

from fairseq.dataclass.utils import overwrite_args_by_name

from fairseq_speedup.checkpoints.folders import EXPECTED
from fairseq_speedup.checkpoints.opening import (
    CheckpointError,
    clear_layout_errors,
    open_checkpoint,
)
from fairseq_speedup.config import named_reductions
from fairseq_speedup.console.relative_paths import looked_for
from fairseq_speedup.pretrained.families import Pretrained
from fairseq_speedup.pretrained.finetuned import FINETUNED_KINDS, from_finetuned, kind_of
from fairseq_speedup.pretrained.pretraining import (
    config_of,
    form_of,
    read_pretraining,
    weights_of,
)

logger = logging.getLogger(__name__)

# Options of pretraining that fine-tuning replaces: name in the pretrained model's config -> name
# in the fine-tuning config, as in fairseq's Wav2VecEncoder.
REPLACED_BY_FINETUNING = """
    dropout activation_dropout dropout_input attention_dropout
    mask_length mask_prob mask_selection mask_other mask_dropout no_mask_overlap require_same_masks
    mask_channel_length mask_channel_prob mask_channel_before mask_channel_selection
    mask_channel_other no_mask_channel_overlap
    feature_grad_mult checkpoint_activations offload_activations min_params_to_wrap
"""
FINETUNING_OVERRIDES = {name: name for name in REPLACED_BY_FINETUNING.split()}
FINETUNING_OVERRIDES["encoder_layerdrop"] = "layerdrop"


def read_pretrained(cfg, reduced: bool = False) -> Pretrained:
    """Reads the checkpoint that ``cfg.w2v_path`` names, of any family.

    Args:
        cfg: of a model that starts from it; its options replace the pretraining's
        reduced: whether it may be a reduced model
    Raises:
        FileNotFoundError, CheckpointError: each names the field, the file and what would be valid
    """
    path = cfg.w2v_path
    source = f"model.w2v_path={path}"
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{source}: no such file, or no file; it must be a pretrained or fine-tuned fairseq "
            f"checkpoint (.pt), or {EXPECTED}{looked_for(path)}"
        )
    try:
        pretrained = read_file(path, reduced)
    except (CheckpointError, FileNotFoundError) as error:
        raise type(error)(f"model.w2v_path: {error}") from None
    overrides = {
        name: getattr(cfg, ours)
        for name, ours in FINETUNING_OVERRIDES.items()
        if hasattr(cfg, ours)
    }
    overwrite_args_by_name(pretrained.cfg, overrides)
    normalize = bool(pretrained.cfg.task.normalize)
    if normalize != bool(cfg.normalize):
        raise CheckpointError(
            f"task.normalize={cfg.normalize} disagrees with the pretraining of {path}; "
            f"set task.normalize={normalize}"
        )
    logger.info(
        "%s: %s, %d weights; %d that only pretraining needs are left out",
        path,
        pretrained.family,
        len(pretrained.weights),
        len(pretrained.dropped),
    )
    return pretrained


def read_file(path: str, reduced: bool = False) -> Pretrained:
    """The encoder in a file, of whatever family and era.

    Args:
        reduced: whether it may be a reduced model, whose encoder is not all of it
    Raises:
        CheckpointError: not a checkpoint, of no family that is known, or reduced
    """
    state = open_checkpoint(path)
    with clear_layout_errors(path):
        return read_state(path, state, reduced)


def read_state(path: str, state: dict, reduced: bool = False) -> Pretrained:
    """The encoder in what was loaded from a file; see :func:`read_file`."""
    if form_of(state) is not None or kind_of(state) not in FINETUNED_KINDS:
        return read_pretraining(path, state)
    weights_of(path, state)
    found = from_finetuned(path, config_of(path, state), state)
    if found.reductions and not reduced:
        raise CheckpointError(
            f"{path} is a reduced model ({named_reductions(found.reductions)}); a fine-tuning may "
            "start from it, by its model.w2v_path, nothing else"
        )
    return found
