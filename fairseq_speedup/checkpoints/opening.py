"""Opening checkpoints safely, with errors that name the file.

A checkpoint is a pickle, and a pickle may run any code. Here every file is read with torch's
restricted unpickler, which builds tensors, plain containers and the types listed in
:mod:`fairseq_speedup.checkpoints.pickles`, and nothing else, whatever fairseq itself asks of
``torch.load``; and its configs are made plain (:mod:`fairseq_speedup.checkpoints.configs`).
"""

import argparse
import contextlib
import copy
import functools
import os
import pickle
from collections.abc import Callable

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed.utils import _TensorPlaceholder
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fairseq_speedup.checkpoints.configs import UnsafeConfigError, plain_config
from fairseq_speedup.checkpoints.folders import EXPECTED, ModelFolderError, check_model_folder
from fairseq_speedup.checkpoints.pickles import HARMLESS_TYPES, refused_types, types_asked_for
from fairseq_speedup.console.refusals import within
from fairseq_speedup.console.relative_paths import looked_for
from fairseq_speedup.files import written_whole

TRUST = "FAIRSEQ_SPEEDUP_TRUST_CHECKPOINTS"

SAFETENSORS = ".safetensors"
ITS_FOLDER = f"which alone are no model: give {EXPECTED}, the whole of it"

# where a checkpoint holds configs, and what each is; s3prl's is Config
CONFIGS = {"cfg": dict, "args": argparse.Namespace, "Config": dict}


NO_TRAINING = {
    "args": None,
    "optimizer_history": [
        {
            "criterion_name": "converted",
            "optimizer_name": "converted",
            "lr_scheduler_state": {"best": None},
            "num_updates": 0,
        }
    ],
    "extra_state": {"train_iterator": {"epoch": 1}},
    "last_optimizer_state": None,
}

_read_folder: Callable[[str], dict] | None = None  # given to install
EXPORTED_ENDINGS = (".onnx", ".xml")


class CheckpointError(ValueError):
    """A file that cannot be used as the checkpoint asked for."""


def trusted() -> bool:
    """Whether the user vouches for every checkpoint, so that any pickle is loaded."""
    return os.environ.get(TRUST) == "1"


@contextlib.contextmanager
def distrusting():
    """No checkpoint is trusted, whatever the user says."""
    given = os.environ.pop(TRUST, None)
    try:
        yield
    finally:
        if given is not None:
            os.environ[TRUST] = given


def open_checkpoint(path: str) -> dict:
    """What ``torch.save`` put into a file, on the CPU, with its configs as plain values; of a
    folder in Hugging Face's form, what ``convert`` would put there.

    Raises:
        FileNotFoundError, CheckpointError: naming the file
    """
    state = unpickle(path)
    return state if trusted() else without_code(path, state)


def unpickle(path: str) -> dict:
    """As :func:`open_checkpoint`, its configs as they are.

    Raises:
        FileNotFoundError, CheckpointError: naming the file
    """
    if os.path.isdir(path):
        try:
            check_model_folder(path)
        except ModelFolderError as error:
            raise CheckpointError(error) from None
        assert _read_folder is not None, "the plugin installs it"
        return _read_folder(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"checkpoint {path} does not exist or is not a file{looked_for(path)}"
        )
    if os.fspath(path).endswith(SAFETENSORS):
        raise CheckpointError(f"{path} holds safetensors, {ITS_FOLDER}")
    state = read_pickle(path)
    if state and all(isinstance(each, torch.Tensor) for each in state.values()):
        raise CheckpointError(f"{path} holds weights, {ITS_FOLDER}")
    return state


def read_pickle(path: str) -> dict:
    """A dict out of a file of ``torch.save``, by the restricted unpickler.

    Raises:
        CheckpointError: naming the file
    """
    try:
        with _no_other_types():
            state = torch.load(path, map_location="cpu", weights_only=not trusted())
    except Exception as error:  # whatever a spoilt file makes of the unpickler
        raise _in_words(path, error) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint")
    return state


def without_code(path: str, state: dict) -> dict:
    """A checkpoint with its configs as plain values, see :func:`plain_config`.

    Raises:
        CheckpointError: a config that would run code, or something else where a config is due
    """
    state = dict(state)
    for name, kind in CONFIGS.items():
        if state.get(name) is None:
            continue
        try:
            with clear_layout_errors(path):
                state[name] = plain_config(state[name], name)
        except UnsafeConfigError as error:
            raise CheckpointError(
                f"{path} is refused: {error}. If you know where the file comes from, {TRUST}=1 "
                "loads it, and runs whatever code it holds"
            ) from None
        if not isinstance(state[name], kind):
            found = type(state[name]).__name__
            raise CheckpointError(f"{path}: its {name} is a {found}, not a {kind.__name__}")
    with clear_layout_errors(path):
        _check_dictionary(path, (state.get("task_state") or {}).get("target_dictionary"))
    return state


def _check_dictionary(path: str, dictionary) -> None:
    symbols = getattr(dictionary, "symbols", None)
    strings = isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols)
    if dictionary is not None and not (isinstance(dictionary, Dictionary) and strings):
        raise CheckpointError(
            f"{path}: its task_state.target_dictionary is a {type(dictionary).__name__}, not a "
            "dictionary of symbols"
        )


def whole_config(model: dict, task: dict) -> dict:
    """A checkpoint's ``cfg`` as fairseq writes it: with all sections, by its defaults."""
    cfg = OmegaConf.create(defaults_of(FairseqConfig) | {"model": model, "task": task})
    return OmegaConf.to_container(cfg, resolve=True)  # ${common.seed} and the like


def defaults_of(config: type) -> dict:
    """The fields of one of fairseq's dataclasses; enumerations as strings."""
    return OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)


def state_without_training(weights: dict, **others) -> dict:
    """What ``torch.save`` is given for weights that no training goes on from."""
    return copy.deepcopy(NO_TRAINING) | {"model": weights} | others


def write_checkpoint(state: dict, path: str) -> None:
    """Writes a checkpoint whole or not at all."""
    with written_whole(path) as part:
        torch.save(state, part)


def install(*upgrades, read_folder, read_exported) -> None:
    """Lets fairseq load its own checkpoints under the restricted unpickler, with errors that name
    the file, and folders. Called once, when the plugin is imported.

    Args:
        upgrades: each called as ``upgrade(path, state, overrides)`` on what was loaded; changes it
            in place
        read_folder: gives the state of a folder in Hugging Face's form
        read_exported: of a file that was exported, and of overrides
    """
    global _read_folder
    _read_folder = read_folder
    # the last is what one process puts for a tensor when it sends a checkpoint to the others
    torch.serialization.add_safe_globals([*HARMLESS_TYPES, _TensorPlaceholder])
    load = checkpoint_utils.load_checkpoint_to_cpu
    if not hasattr(load, "__wrapped__"):
        checkpoint_utils.load_checkpoint_to_cpu = _safe(load, upgrades, read_exported)
        upgrade = checkpoint_utils._upgrade_state_dict
        checkpoint_utils._upgrade_state_dict = _of_whole_config(upgrade)


def _safe(load, upgrades, read_exported=None):
    @functools.wraps(load)
    def load_checkpoint_to_cpu(path, arg_overrides=None, *args, **kwargs):
        if read_exported and os.fspath(path).endswith(EXPORTED_ENDINGS):
            state = read_exported(path, arg_overrides)
        else:
            state = open_checkpoint(path)
        file = os.devnull if os.path.isdir(path) else path  # fairseq opens it
        with clear_layout_errors(path), _loaded(state):
            state = load(file, arg_overrides, *args, **kwargs)
        with clear_layout_errors(path):
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
        if isinstance(cfg, DictConfig):
            with open_dict(cfg):
                for section, defaults in defaults_of(FairseqConfig).items():
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
def _loaded(state: dict):
    """``torch.load`` gives what was read already, whatever a fairseq distribution asks of it: some
    ask for no restriction."""
    load = torch.load
    torch.load = torch.serialization.load = lambda *args, **kwargs: state
    try:
        yield
    finally:
        torch.load = torch.serialization.load = load


@contextlib.contextmanager
def _no_other_types():
    """torch's list of allowed types is open to every library: while a checkpoint is read, it holds
    ours alone."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(HARMLESS_TYPES)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


@contextlib.contextmanager
def clear_layout_errors(path: str):
    """What fails on a file that is laid out unlike a checkpoint fails with its name."""
    try:
        yield
    except (CheckpointError, UnsafeConfigError):
        raise
    except (
        *(AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError),
        *(ArithmeticError, AssertionError, MemoryError, OmegaConfBaseException),
    ) as error:
        raise CheckpointError(
            f"{path} is not laid out as a fairseq checkpoint: {_reason(error)}"
        ) from error


def _in_words(path: str, error: Exception) -> CheckpointError:
    refused = refused_types(types_asked_for(path))
    if refused and isinstance(error, pickle.UnpicklingError):
        return CheckpointError(
            f"{path} is refused: it asks for {', '.join(refused)}, not among the harmless types "
            f"that fairseq's checkpoints hold. If you know where the file comes from, {TRUST}=1 "
            "loads it, and runs whatever code it holds"
        )
    return CheckpointError(
        f"{path} ({os.path.getsize(path):,} bytes) cannot be read as a fairseq checkpoint: "
        f"truncated, or another kind of file ({_reason(error)})"
    )


def _reason(error: Exception) -> str:
    text = str(error).split("WeightsUnpickler error: ")[-1].strip()  # torch puts advice before it
    return within(f"{type(error).__name__}: {text}".split("\n")[0], 200)
