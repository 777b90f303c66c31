"""Reading checkpoints: what fairseq's files may hold, and errors that name the file."""

import argparse
import functools
import os
import pickle
import re

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary

# Types that fairseq's own checkpoints hold beside tensors. None of them runs code when unpickled,
# so torch's restricted unpickler (weights_only=True) may build them.
HARMLESS_TYPES = [Dictionary, argparse.Namespace]


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
