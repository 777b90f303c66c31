"""``--model-overrides`` that fairseq would ignore: it replaces only what a checkpoint has."""

import difflib
from typing import Any

from omegaconf import DictConfig, open_dict

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.config import REDUCTION_OPTIONS

FINETUNED_MODELS = ["speedup_ctc", "wav2vec_ctc"]


def fit_overrides(path: str, state: dict, overrides: dict) -> None:
    """Puts reduction options that are newer than the checkpoint into its config, in place.

    Args:
        path: of the checkpoint, for messages
        state: the checkpoint; its config has the other overrides already in it
        overrides: as the user gave them
    Raises:
        CheckpointError: an option that nothing knows
    """
    cfg = state.get("cfg")
    if not overrides or cfg is None:
        return
    model: Any = cfg.get("model") or {}
    kind = model.get("_name")
    if kind not in FINETUNED_MODELS:
        return
    ours = {name: value for name, value in overrides.items() if name in REDUCTION_OPTIONS}
    with open_dict(model):
        if ours and kind != "speedup_ctc":
            model._name = "speedup_ctc"  # the same modules, able to be reduced
            model.padding = "stock"
        for name, value in ours.items():
            model[name] = value
    known = _all_keys(cfg)
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(name, sorted({*known, *REDUCTION_OPTIONS}))
            meant = f"; did you mean {', '.join(close)}?" if close else ""
            raise CheckpointError(
                f"override {name!r} is no option of {path}{meant} "
                f"(reductions: {', '.join(REDUCTION_OPTIONS)})"
            )


def _all_keys(cfg: DictConfig) -> set[str]:
    keys = set(cfg.keys())
    for name in cfg:
        # "in" is False for a mandatory value that is not set
        if name in cfg and isinstance(cfg[name], DictConfig):
            keys |= _all_keys(cfg[name])
    return keys
