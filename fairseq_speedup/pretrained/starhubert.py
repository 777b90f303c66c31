"""STaRHuBERT (arXiv 2312.09040) as its authors publish it: a Lightning checkpoint, and beside it
the YAML file of its training, which has the sizes."""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fairseq_speedup.checkpoints import CheckpointError
from fairseq_speedup.pretrained.families import Pretrained, as_wav2vec2, sort_weights
from fairseq_speedup.saved_configs import UnsafeConfigError, evaluate

FAMILY = "starhubert"
WEIGHTS = "state_dict"
PREFIX = "student_model."
ENDINGS = (".yaml", ".yml")


def is_starhubert(state: dict) -> bool:
    weights = state.get(WEIGHTS)
    return isinstance(weights, dict) and any(str(name).startswith(PREFIX) for name in weights)


def read_starhubert(path: str, state: dict) -> Pretrained:
    """The student in a file.

    Raises:
        CheckpointError: without its YAML file, or a student that reuses attention maps or shortens
            its frames
    """
    options = _options(path)
    _check_plain(path, options)
    cfg = as_wav2vec2(path, FAMILY, options, normalize=False)
    weights = {
        name.removeprefix(PREFIX): weight
        for name, weight in state[WEIGHTS].items()
        if name.startswith(PREFIX)  # the teacher's are there too
    }
    kept, dropped = sort_weights(path, FAMILY, weights)
    # it may have been trained without masks: those of fine-tuning begin as silence
    kept.setdefault("mask_emb", torch.zeros(cfg.model.encoder_embed_dim))
    return Pretrained(FAMILY, cfg, kept, dropped)


def _options(path: str) -> dict:
    """Of the YAML file's section ``distiller``."""
    files = [Path(path).with_suffix(ending) for ending in ENDINGS]
    found = [file for file in files if file.is_file()]
    if not found:
        raise CheckpointError(
            f"{path} holds a student's weights alone: put the YAML file that is published with it "
            f"beside it, as {files[0].name}"
        )
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(found[0]), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise CheckpointError(f"{found[0]} cannot be read: {error}") from None
    options = loaded.get("distiller") if isinstance(loaded, dict) else None
    if not isinstance(options, dict):
        raise CheckpointError(f"{found[0]} has no section distiller, with the sizes of {path}")
    return options


def _check_plain(path: str, options: dict) -> None:
    pattern = options.get("reuse_pattern", "[]")
    try:
        computes = evaluate(pattern, "reuse_pattern")
    except UnsafeConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not all(computes):
        raise CheckpointError(
            f"{path}: some of its layers reuse the attention maps of others (reuse_pattern="
            f"{pattern}), as ARMHuBERT's do, which no model here can; STaRHuBERT's have their own"
        )
    if options.get("enable_tr_layer", False):
        raise CheckpointError(
            f"{path}: its frames are joined between layers (enable_tr_layer=true)"
        )
