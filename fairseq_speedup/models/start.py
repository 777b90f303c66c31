"""What a training takes of the checkpoint that it starts from, which may be a pretrained model, a
fine-tuned one with its head, or a reduced one, of which it goes on with everything."""

import logging

import torch
from torch import nn

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.config import (
    DEFAULTS,
    SpeedupCtcConfig,
    check_options,
    keep_reductions,
    named_reductions,
)
from fairseq_speedup.heads import HeadConfig, head_of_labels
from fairseq_speedup.models.state_fitting import PREFIX, MisfitError
from fairseq_speedup.pretrained import Pretrained, load_weights, read_pretrained
from fairseq_speedup.pretrained.finetuned import ENCODER, HEAD
from fairseq_speedup.pruning.narrowing import narrow_weights

logger = logging.getLogger(__name__)

CNN_PREFIX = "feature_extractor."
CNN = f"{ENCODER}{CNN_PREFIX}"
HEADS = (HEAD, f"{PREFIX}exit_heads.")
BEGUN = (f"{PREFIX}waveform_reduction.", f"{PREFIX}fbank.")  # where the start has none


# -- its options -----------------------------------------------------------------------------------


def read_start(cfg: SpeedupCtcConfig) -> Pretrained | None:
    """What ``w2v_path`` names, whose options ``cfg`` takes, in place; None of a model that has been
    trained, whose config has them.

    Raises:
        CheckpointError, ValueError: what the file holds is no start, or not with these options
    """
    start = None
    if cfg.w2v_args is None:
        start = read_pretrained(cfg, reduced=True)
        _take_reductions(cfg, start)
        cfg.w2v_args = start.cfg
    try:
        check_options(cfg)
    except ValueError as error:
        if start is None or not start.reductions:
            raise
        has = named_reductions(start.reductions)
        raise type(error)(f"{error}; model.w2v_path={cfg.w2v_path} has {has}") from None
    return start


def _take_reductions(cfg, start: Pretrained) -> None:
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


# -- its weights -----------------------------------------------------------------------------------


def load_encoder(encoder, start: Pretrained, cfg: SpeedupCtcConfig) -> None:
    """Copies the weights of a start into an encoder that fairseq has built; of a reduced model the
    CNN's alone, which may be a teacher: all of it fits once the path is built, see
    :func:`load_whole`.

    Raises:
        CheckpointError: weights that do not fit, or a CNN that is needed and not there
    """
    w2v_model = encoder.w2v_model
    if encoder.narrowed is not None:
        num_heads = cfg.w2v_args.model.encoder_attention_heads
        narrow_weights(start.weights, encoder.narrowed, num_heads)
    cnn = {name: w for name, w in start.weights.items() if name.startswith(CNN_PREFIX)}
    if not cnn:
        _check_cnn_is_not_needed(cfg)
        w2v_model.feature_extractor = nn.Identity()
    if start.reductions:
        of_cnn = {name.removeprefix(CNN_PREFIX): weight for name, weight in cnn.items()}
        load_weights(w2v_model.feature_extractor, of_cnn, f"model.w2v_path={cfg.w2v_path}")
    elif cfg.ddp_backend == "fully_sharded":  # fairseq's own way, layer by layer
        encoder.load_model_weights({"model": start.weights}, w2v_model, cfg)
    else:
        load_weights(w2v_model, start.weights, f"model.w2v_path={cfg.w2v_path}")


def _check_cnn_is_not_needed(cfg) -> None:
    saved = f"model.w2v_path={cfg.w2v_path} was saved without its CNN"
    if cfg.frontend == "cnn":
        raise CheckpointError(f"{saved}, which frontend=cnn needs: set frontend=fbank")
    if cfg.frontend_match_updates > 0:
        raise CheckpointError(
            f"{saved}, which frontend_match_updates={cfg.frontend_match_updates} would have "
            "the front-end reproduce: set frontend_match_updates=0"
        )


def keep_head(encoder, start: Pretrained, labels: list[str], cfg: SpeedupCtcConfig) -> None:
    """The head of a fine-tuned start, label by label, with which those of exits begin too; the
    frames that logit_upsample makes of one start alike, which CTC reads as that one.

    Args:
        labels: symbols of the model's dictionary
    """
    if not start.head:
        if cfg.exit_heads_only:
            logger.warning(
                "exit_heads_only=true over a last head that is not trained: give a fine-tuned "
                "checkpoint as checkpoint.finetune_from_model or model.w2v_path"
            )
        return
    head = head_of_labels(start.head, start.labels, labels)
    if head is None:
        logger.warning("the fine-tuned checkpoint has other labels: its head is not kept")
        return
    encoder.proj.load_state_dict(
        {name: torch.cat([weight] * cfg.logit_upsample) for name, weight in head.items()}
    )
    for exit_head in getattr(encoder, "exit_heads", {}).values():
        exit_head.load_state_dict(encoder.proj.state_dict())
    new = [symbol for symbol in labels if symbol not in (start.labels or labels)]
    of = f"; new to it: {' '.join(new)}" if new else ""
    logger.info("the head of the fine-tuned checkpoint is kept%s", of)


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
