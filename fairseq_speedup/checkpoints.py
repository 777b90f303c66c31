"""Reading checkpoints: what fairseq's files may hold, and errors that name the file."""

import argparse
import functools
import logging
import os
import pickle
import re

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig

logger = logging.getLogger(__name__)

# Types that fairseq's own checkpoints hold beside tensors. None of them runs code when unpickled,
# so torch's restricted unpickler (weights_only=True) may build them.
HARMLESS_TYPES = [Dictionary, argparse.Namespace]

# fairseq models that can be fine-tuned: every one is built by its pretraining task
PRETRAINED_MODELS = ["wav2vec2"]

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


class CheckpointError(ValueError):
    """A file that cannot be used as the checkpoint asked for."""


def install(fit_overrides) -> None:
    """Lets fairseq load its own checkpoints under torch's restricted unpickler, with errors that
    name the file. Called once, when the plugin is imported.

    Args:
        fit_overrides: called with the path, the config and the overrides of a loaded checkpoint
    """
    torch.serialization.add_safe_globals(HARMLESS_TYPES)
    load = checkpoint_utils.load_checkpoint_to_cpu
    if not hasattr(load, "__wrapped__"):
        checkpoint_utils.load_checkpoint_to_cpu = _with_clear_errors(load, fit_overrides)


def _with_clear_errors(load, fit_overrides):
    @functools.wraps(load)
    def load_checkpoint_to_cpu(path, arg_overrides=None, *args, **kwargs):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"checkpoint {path} does not exist or is not a file")
        try:
            state = load(path, arg_overrides, *args, **kwargs)
        except pickle.UnpicklingError as error:
            unsafe = re.search(r"GLOBAL (\S+)", str(error))
            if unsafe:
                raise CheckpointError(
                    f"{path} is refused: it holds {unsafe[1]}, which is not among the harmless "
                    "types that fairseq's checkpoints hold"
                ) from None
            raise CheckpointError(_unreadable(path, "not a pickle of PyTorch's")) from None
        except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, OSError) as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
            raise CheckpointError(_unreadable(path, reason)) from None
        if arg_overrides and state.get("cfg") is not None:
            fit_overrides(path, state["cfg"], arg_overrides)
        return state

    return load_checkpoint_to_cpu


def _unreadable(path: str, reason: str) -> str:
    return (
        f"{path} ({os.path.getsize(path):,} bytes) cannot be read as a fairseq checkpoint: "
        f"truncated, or another kind of file ({reason})"
    )


def read_pretrained(cfg) -> dict:
    """Reads the pretrained checkpoint that ``cfg.w2v_path`` names.

    Args:
        cfg: a fine-tuning config (``Wav2Vec2AsrConfig``); its options replace the pretraining's
    Returns:
        fairseq's checkpoint, with ``cfg`` as the config of pretraining
    Raises:
        FileNotFoundError, CheckpointError: each names the field, the file and what would be valid
    """
    path = cfg.w2v_path
    overrides = {name: getattr(cfg, ours) for name, ours in FINETUNING_OVERRIDES.items()}
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(path, overrides)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"model.w2v_path={path}: no such file; it must be a pretrained fairseq checkpoint (.pt)"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"model.w2v_path: {error}") from None
    if not isinstance(state.get("model"), dict):
        raise CheckpointError(f"model.w2v_path={path} holds no model weights")
    pretraining = state.get("cfg")
    if pretraining is None:
        if state.get("args") is None:
            raise CheckpointError(f"model.w2v_path={path} holds neither a cfg nor args")
        pretraining = convert_namespace_to_omegaconf(state["args"])
    kind = pretraining.model.get("_name", None) if pretraining.get("model") else None
    if kind not in PRETRAINED_MODELS:
        raise CheckpointError(
            f"model.w2v_path={path} holds a {kind!r} model; pretrained models that can be "
            f"fine-tuned here: {', '.join(PRETRAINED_MODELS)}"
        )
    pretraining.criterion = None
    pretraining.lr_scheduler = None
    _check_normalize(cfg, pretraining)
    state["cfg"] = pretraining
    return state


def _check_normalize(cfg, pretraining: DictConfig) -> None:
    pretrained = pretraining.task.get("normalize", pretraining.model.get("normalize", False))
    if bool(pretrained) != bool(cfg.normalize):
        raise CheckpointError(
            f"task.normalize={cfg.normalize} disagrees with the pretraining of {cfg.w2v_path}; "
            f"set task.normalize={bool(pretrained)}"
        )
