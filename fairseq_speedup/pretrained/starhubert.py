"""STaRHuBERT (arXiv 2312.09040) and ARMHuBERT (arXiv 2305.11685), some of whose layers reuse the
attention maps of others, as their authors publish them: a Lightning checkpoint, and beside it the
YAML file of its training, which has the sizes."""

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fairseq_speedup.checkpoints.configs import UnsafeConfigError, evaluate, plain_config
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.pretrained.families import (
    Pretrained,
    as_wav2vec2,
    begin_masks,
    sort_weights,
)
from fairseq_speedup.transformer.reused_attention import check_computes

FAMILY = "starhubert"
REUSING = "armhubert"
WEIGHTS = "state_dict"
PREFIX = "student_model."
ENDINGS = (".yaml", ".yml")
LARGEST = 1 << 16  # of a size
SIZES = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("conv_pos", "conv_pos_groups", "pos_conv_depth"),
)
NEEDED = (
    *SIZES,
    *("conv_feature_layers", "extractor_mode", "conv_bias", "layer_norm_first", "activation_fn"),
)


def is_starhubert(state: dict) -> bool:
    weights = state.get(WEIGHTS)
    return isinstance(weights, dict) and any(str(name).startswith(PREFIX) for name in weights)


def read_starhubert(path: str, state: dict) -> Pretrained:
    """The student in a file.

    Raises:
        CheckpointError: without its YAML file, or a student that shortens its frames
    """
    options = _options(path)
    _check_whole(path, options)
    computes = _computes(path, options)
    family = FAMILY if all(computes) else REUSING
    _check_plain(path, options)
    cfg = as_wav2vec2(path, family, {**options, "computes": computes}, normalize=False)
    weights = {
        name.removeprefix(PREFIX): weight
        for name, weight in state[WEIGHTS].items()
        if name.startswith(PREFIX)  # the teacher's are there too
    }
    kept, dropped = sort_weights(path, family, weights)
    begin_masks(kept, cfg)
    return Pretrained(family, cfg, kept, dropped)


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
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{found[0]} cannot be read: {error}") from None
    options = loaded.get("distiller") if isinstance(loaded, dict) else None
    if not isinstance(options, dict):
        raise CheckpointError(f"{found[0]} has no section distiller, with the sizes of {path}")
    try:
        return plain_config(options, "distiller")
    except UnsafeConfigError as error:
        raise CheckpointError(f"{found[0]} is refused: {error}") from None


def _check_whole(path: str, options: dict) -> None:
    """Raises CheckpointError for fields without which fairseq's defaults would be taken, and for
    sizes that cannot be."""
    missing = [name for name in NEEDED if options.get(name) is None]
    if missing:
        raise CheckpointError(
            f"{path}: the YAML file beside it has no {', '.join(missing)} under distiller"
        )
    for name in SIZES:
        if type(options[name]) is not int or not 1 <= options[name] <= LARGEST:
            raise CheckpointError(
                f"{path}: {name} is {options[name]}; it must be a number from 1 to {LARGEST}"
            )
    for name in ("encoder_attention_heads", "conv_pos_groups"):
        if options["encoder_embed_dim"] % options[name]:
            raise CheckpointError(
                f"{path}: {name} is {options[name]}; it must be a divisor of encoder_embed_dim="
                f"{options['encoder_embed_dim']}"
            )


def _computes(path: str, options: dict) -> list[bool]:
    """For each layer, whether it computes its own attention map; [] where all do."""
    pattern = options.get("reuse_pattern")
    if pattern is None:
        return []
    try:
        computes = evaluate(str(pattern), "reuse_pattern")
    except UnsafeConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not computes or (isinstance(computes, list) and all(each is True for each in computes)):
        return []
    check_computes(computes, options["encoder_layers"], f"{path}: reuse_pattern")
    return list(computes)


def _check_plain(path: str, options: dict) -> None:
    if options.get("enable_tr_layer", False):
        raise CheckpointError(
            f"{path}: its frames are joined between layers (enable_tr_layer=true)"
        )
