"""Training that goes on from a reduced model: with all of it, and perhaps with more reductions."""

import logging

from fairseq_speedup.checkpoints import CheckpointError
from fairseq_speedup.heads import HeadConfig
from fairseq_speedup.models.config import DEFAULTS, keep_reductions, named_reductions
from fairseq_speedup.models.state_fitting import PREFIX, MisfitError
from fairseq_speedup.pretrained import Pretrained
from fairseq_speedup.pretrained.finetuned import ENCODER, HEAD

logger = logging.getLogger(__name__)

HEADS = (HEAD, f"{PREFIX}exit_heads.")
CNN = f"{ENCODER}feature_extractor."
BEGUN = (f"{PREFIX}waveform_reduction.", f"{PREFIX}fbank.")  # where the start has none


def take_reductions(cfg, start: Pretrained) -> None:
    """Puts the reductions of ``start`` into the config of what goes on from it, in place, but for
    options that it sets itself.

    Raises:
        CheckpointError: gates of pruning, which are for one training
        ValueError: a sharded training, whose weights are not whole once the model is built
    """
    if not start.reductions:
        return
    named = named_reductions(start.reductions)
    if start.reductions.get("prune_target", 1) < 1:
        raise CheckpointError(
            f"model.w2v_path={cfg.w2v_path} has gates of pruning ({named}), which are not cut yet: "
            f"python -m fairseq_speedup prune {cfg.w2v_path} --output pruned.pt makes a start of it"
        )
    if cfg.ddp_backend == "fully_sharded":
        raise ValueError(
            f"distributed_training.ddp_backend=fully_sharded with model.w2v_path={cfg.w2v_path}, a "
            f"reduced model ({named}): start from a pretrained one, or choose another ddp_backend"
        )
    kept, replaced = keep_reductions(cfg, start.reductions)
    logger.info(
        "model.w2v_path=%s is a reduced model, which goes on with %s%s",
        cfg.w2v_path,
        named_reductions(kept) or "none of its reductions",
        f"; replaced: {named_reductions(replaced)}" if replaced else "",
    )


def load_whole(model, start: Pretrained, labels: list[str]) -> None:
    """Copies every weight of a reduced model into one that goes on from it, see :func:`fit_state`.
    A front-end or a waveform reduction that is new, and heads of another kind or for other labels,
    are left as the model has them.

    Args:
        labels: symbols of the model's dictionary
    Raises:
        CheckpointError: weights that do not fit, with the option that decides
    """
    weights, ours = dict(start.whole), model.state_dict()
    for prefix in BEGUN:
        if not any(name.startswith(prefix) for name in weights):
            weights |= {name: w for name, w in ours.items() if name.startswith(prefix)}
    if model.w2v_encoder.cnn is None:
        weights = {name: w for name, w in weights.items() if not name.startswith(CNN)}
    same_kind = all(
        model.cfg[name] == start.reductions.get(name, DEFAULTS[name])
        for name in HeadConfig.__annotations__
    )
    if not same_kind or (start.labels or labels) != labels:
        weights = {name: w for name, w in weights.items() if not name.startswith(HEADS)}
        weights |= {name: w for name, w in ours.items() if name.startswith(HEAD)}
    try:
        model.load_state_dict(weights, strict=True)
    except ValueError as error:
        has = ""
        if isinstance(error, MisfitError):
            values = {name: start.reductions.get(name, DEFAULTS[name]) for name in error.options}
            has = f" (it has {', '.join(f'{name}={value}' for name, value in values.items())})"
        raise CheckpointError(f"model.w2v_path={model.cfg.w2v_path}{has}: {error}") from None
