"""Opening checkpoints safely, with errors that name the file.

A checkpoint is a pickle, and a pickle may run any code. Here every file is read with torch's
restricted unpickler, which builds tensors, plain containers and the few types below, and nothing
else, whatever fairseq itself asks of ``torch.load``.
"""

import argparse
import collections
import contextlib
import functools
import os
import pickle
import re
import typing

import omegaconf
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import nodes

TRUST = "FAIRSEQ_SPEEDUP_TRUST_CHECKPOINTS"

# What fairseq's own checkpoints hold beside tensors. None of it runs code when unpickled.
HARMLESS_TYPES = [
    Dictionary,
    argparse.Namespace,
    collections.defaultdict,
    dict,
    list,
    int,
    typing.Any,
    omegaconf.DictConfig,
    omegaconf.ListConfig,
    omegaconf.base.Metadata,
    omegaconf.base.ContainerMetadata,
    nodes.AnyNode,
    nodes.StringNode,
    nodes.IntegerNode,
    nodes.FloatNode,
    nodes.BooleanNode,
]


class CheckpointError(ValueError):
    """A file that cannot be used as the checkpoint asked for."""


def trusted() -> bool:
    """Whether the user vouches for every checkpoint, so that any pickle is loaded."""
    return os.environ.get(TRUST) == "1"


def open_checkpoint(path: str):
    """What ``torch.save`` put into a file, on the CPU.

    Raises:
        FileNotFoundError, CheckpointError: naming the file
    """
    with _clear_errors(path):
        return torch.load(path, map_location="cpu", weights_only=not trusted())


def write_checkpoint(state: dict, path: str) -> None:
    """Writes a checkpoint whole or not at all."""
    part = f"{path}.part"
    torch.save(state, part)
    os.replace(part, path)


def install(*upgrades) -> None:
    """Lets fairseq load its own checkpoints under the restricted unpickler, with errors that name
    the file. Called once, when the plugin is imported.

    Args:
        upgrades: each called as ``upgrade(path, state, overrides)`` on what was loaded; changes it
            in place
    """
    torch.serialization.add_safe_globals(HARMLESS_TYPES)
    load = checkpoint_utils.load_checkpoint_to_cpu
    if not hasattr(load, "__wrapped__"):
        checkpoint_utils.load_checkpoint_to_cpu = _safe(load, upgrades)
        upgrade = checkpoint_utils._upgrade_state_dict
        checkpoint_utils._upgrade_state_dict = _of_whole_config(upgrade)


def _safe(load, upgrades):
    @functools.wraps(load)
    def load_checkpoint_to_cpu(path, arg_overrides=None, *args, **kwargs):
        with _clear_errors(path), _restricted_unpickler():
            state = load(path, arg_overrides, *args, **kwargs)
        for upgrade in upgrades:
            upgrade(path, state, arg_overrides or {})
        return state

    return load_checkpoint_to_cpu


def _of_whole_config(upgrade):
    """fairseq's upgrade of old checkpoints asks for options that not every version has saved:
    those missing get their default."""

    @functools.wraps(upgrade)
    def upgrade_state_dict(state):
        cfg = state.get("cfg")
        if isinstance(cfg, omegaconf.DictConfig):
            whole = omegaconf.OmegaConf.to_container(
                omegaconf.OmegaConf.structured(FairseqConfig), enum_to_str=True
            )
            with omegaconf.open_dict(cfg):
                for section, defaults in whole.items():
                    if section not in cfg:
                        cfg[section] = defaults
                    elif isinstance(defaults, dict) and section != "model":
                        for name, value in defaults.items():
                            cfg[section].setdefault(name, value)
                wer = cfg.get("task") and cfg.task.get("eval_wer_config")
                if wer:
                    wer.setdefault("print_alignment", None)
        return upgrade(state)

    return upgrade_state_dict


@contextlib.contextmanager
def _restricted_unpickler():
    """``torch.load`` is restricted, unless the user trusts the file: some fairseq distributions ask
    it not to be."""
    load = torch.load

    @functools.wraps(load)
    def restricted(*args, **kwargs):
        kwargs["weights_only"] = not trusted()
        return load(*args, **kwargs)

    torch.load = restricted
    try:
        yield
    finally:
        torch.load = load


@contextlib.contextmanager
def _clear_errors(path: str):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist or is not a file")
    try:
        yield
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|class)\S*) (\S+)", str(error))
        if unsafe:
            raise CheckpointError(
                f"{path} is refused: it holds {unsafe[1]}, which is not among the harmless types "
                "that fairseq's checkpoints hold. If you know where the file comes from, "
                f"{TRUST}=1 loads it, and runs whatever code it holds"
            ) from None
        reason = str(error).split("\n")[0][:200]
        raise CheckpointError(_unreadable(path, f"not a pickle of PyTorch's: {reason}")) from None
    except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        raise CheckpointError(_unreadable(path, reason)) from None


def _unreadable(path: str, reason: str) -> str:
    return (
        f"{path} ({os.path.getsize(path):,} bytes) cannot be read as a fairseq checkpoint: "
        f"truncated, or another kind of file ({reason})"
    )
