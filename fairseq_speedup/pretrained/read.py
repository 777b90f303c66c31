"""Reads the checkpoint that ``model.w2v_path`` names."""

import logging
import os

import torch
from fairseq.dataclass.utils import overwrite_args_by_name
from omegaconf import OmegaConf

from fairseq_speedup.checkpoints import CheckpointError, clear_layout_errors, open_checkpoint
from fairseq_speedup.model_folders import EXPECTED
from fairseq_speedup.pretrained.families import (
    RELATIVE_BIAS,
    Pretrained,
    as_wav2vec2,
    family_of,
    made_anew,
    sort_weights,
)
from fairseq_speedup.pretrained.finetuned import FINETUNED_KINDS, from_finetuned
from fairseq_speedup.relative_paths import looked_for

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

# A DistilHuBERT config's fields: name in s3prl -> name in fairseq, where it is another.
S3PRL_FIELDS = {"extractor_conv_feature_layers": "conv_feature_layers"}


def read_pretrained(cfg) -> Pretrained:
    """Reads the checkpoint that ``cfg.w2v_path`` names, of any family.

    Args:
        cfg: of a model that starts from it; its options replace the pretraining's
    Raises:
        FileNotFoundError, CheckpointError: each names the field, the file and what would be valid
    """
    path = cfg.w2v_path
    source = f"model.w2v_path={path}"
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{source}: no such file, or no file; it must be a pretrained fairseq checkpoint "
            f"(.pt), or {EXPECTED}{looked_for(path)}"
        )
    try:
        pretrained = read_file(path)
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


def read_file(path: str) -> Pretrained:
    """The encoder in a file, of whatever family and era.

    Raises:
        CheckpointError: not a checkpoint, or of no family that is known
    """
    state = open_checkpoint(path)
    with clear_layout_errors(path):
        return read_state(path, state)


def read_state(path: str, state: dict) -> Pretrained:
    """The encoder in what was loaded from a file; see :func:`read_file`."""
    if "Distiller" in state:
        return _distilhubert(path, state)
    weights = state.get("model")
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path} holds no model weights")
    cfg = state.get("cfg")
    if isinstance(cfg, dict) and "model" not in cfg and "encoder_layers" in cfg:
        return _wavlm(path, cfg, weights)
    if cfg is None:
        if state.get("args") is None:
            raise CheckpointError(f"{path} holds neither a cfg nor args")
        cfg = _pretraining_of_namespace(path, state["args"])
    cfg = OmegaConf.create(cfg, flags={"allow_objects": True})  # a Namespace may be inside
    model_cfg, task_cfg = cfg.get("model"), cfg.get("task")
    kind = model_cfg.get("_name") if model_cfg else None
    if kind == "distilled_student":
        return _student(path, cfg, weights)
    if kind in FINETUNED_KINDS:
        return from_finetuned(path, cfg, state)
    return family_of(path, model_cfg or {}, task_cfg, weights)


def _pretraining_of_namespace(path: str, args) -> dict:
    """The config of a checkpoint of fairseq before 1.0: one flat Namespace."""
    given = dict(vars(args))
    kind = given.get("arch")
    return {
        "model": {**given, "_name": kind},
        "task": {"_name": given.get("task"), "normalize": given.get("normalize", False)},
    }


def _wavlm(path: str, given: dict, weights: dict) -> Pretrained:
    """Microsoft's format: a flat config, weights under wav2vec 2.0's names."""
    if RELATIVE_BIAS not in weights:
        given = {**given, "relative_position_embedding": False}
    cfg = as_wav2vec2(path, "wavlm", given, given.get("normalize", False))
    return Pretrained("wavlm", cfg, *sort_weights(path, "wavlm", weights))


def _student(path: str, cfg, weights: dict) -> Pretrained:
    """A student of ours has its teacher's config, with fewer layers."""
    pretraining = made_anew(path, cfg.model.w2v_args)
    pretraining.model.encoder_layers = cfg.model.student_layers
    prefix = "student."
    weights = {
        name[len(prefix) :] if name.startswith(prefix) else name: weight
        for name, weight in weights.items()
    }
    kept, dropped = sort_weights(path, "distilled_student", weights)
    return Pretrained("distilled_student", pretraining, kept, dropped)


def _distilhubert(path: str, state: dict) -> Pretrained:
    """
    Raises:
        CheckpointError: a config that is missing, or weights that no DistilHuBERT has
    """
    weights, config = state["Distiller"], state.get("Config")
    given = config.get("distiller") if isinstance(config, dict) else None
    if not isinstance(given, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"{path}: its Config has no 'distiller' section")
    options = {S3PRL_FIELDS.get(name, name): value for name, value in given.items()}
    options.setdefault("encoder_layers", 1)  # s3prl's default; its others are fairseq's
    if options["encoder_layers"] < 1:
        raise CheckpointError(f"{path}: a student without transformer layers")
    cfg = as_wav2vec2(path, "distilhubert", options, normalize=False)
    kept, dropped = sort_weights(path, "distilhubert", weights)
    # it was trained without masks: those of fine-tuning begin as silence
    kept.setdefault("mask_emb", torch.zeros(cfg.model.encoder_embed_dim))
    return Pretrained("distilhubert", cfg, kept, dropped)
