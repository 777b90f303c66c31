"""Reading the pretrained checkpoint that fine-tuning starts from, whoever wrote it."""

import logging
import re
import zipfile

import torch
from fairseq import checkpoint_utils, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, overwrite_args_by_name
from omegaconf import DictConfig, OmegaConf, open_dict

from fairseq_speedup.architectures import pretraining_config
from fairseq_speedup.checkpoints import CheckpointError

logger = logging.getLogger(__name__)

# What can be fine-tuned: kinds of model in fairseq's own files, and what other files hold.
PRETRAINED_MODELS = ["wav2vec2", "distilled_student", "DistilHuBERT of s3prl"]

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

# A DistilHuBERT config's fields: name in s3prl -> name in fairseq's wav2vec 2.0.
S3PRL_FIELDS = {
    "extractor_mode": "extractor_mode",
    "extractor_conv_feature_layers": "conv_feature_layers",
    "conv_pos": "conv_pos",
    "conv_pos_groups": "conv_pos_groups",
    "encoder_layers": "encoder_layers",
    "encoder_embed_dim": "encoder_embed_dim",
    "encoder_ffn_embed_dim": "encoder_ffn_embed_dim",
    "encoder_attention_heads": "encoder_attention_heads",
    "activation_fn": "activation_fn",
    "layer_norm_first": "layer_norm_first",
}
S3PRL_WEIGHTS = ("feature_extractor.", "post_extract_proj.", "encoder.")
S3PRL_PREDICTION_HEADS = "output_layer."


def read_pretrained(cfg) -> dict:
    """Reads the pretrained checkpoint that ``cfg.w2v_path`` names.

    Args:
        cfg: of a model that starts from it; its options replace the pretraining's
    Returns:
        fairseq's checkpoint of a ``wav2vec2`` model, with ``cfg`` as the config of pretraining
    Raises:
        FileNotFoundError, CheckpointError: each names the field, the file and what would be valid
    """
    path = cfg.w2v_path
    overrides = {
        name: getattr(cfg, ours)
        for name, ours in FINETUNING_OVERRIDES.items()
        if hasattr(cfg, ours)
    }
    distiller = _read_s3prl(path)
    if distiller is not None:
        state = _from_s3prl(path, distiller)
        overwrite_args_by_name(state["cfg"], overrides)
    else:
        state = _read_fairseq(path, overrides)
    pretraining = state["cfg"]
    _check_conv_layers(path, pretraining.model.get("conv_feature_layers"))
    pretraining.criterion = None
    pretraining.lr_scheduler = None
    _check_normalize(cfg, pretraining)
    return state


def build_encoder(pretraining: DictConfig):
    """fairseq's model of a pretraining config, for its features alone."""
    # its data are of no interest, and may not be here
    cfg = OmegaConf.merge(pretraining, {"task": {"data": ""}})
    task = tasks.setup_task(cfg.task, from_checkpoint=True)
    model = task.build_model(cfg.model, from_checkpoint=True)
    model.remove_pretraining_modules()
    model.crop_seq_to_multiple = 1
    return model


def _read_fairseq(path: str, overrides: dict) -> dict:
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
    if kind == "distilled_student":
        return _from_student(state, pretraining)
    if kind != "wav2vec2":
        raise CheckpointError(
            f"model.w2v_path={path} holds a {kind!r} model; pretrained models that can be "
            f"fine-tuned here: {', '.join(PRETRAINED_MODELS)}"
        )
    state["cfg"] = pretraining
    return state


def _from_student(state: dict, cfg: DictConfig) -> dict:
    """A student of ours is a wav2vec 2.0 with fewer layers, and prediction heads to leave out."""
    prefix = "student."
    state["model"] = {
        name[len(prefix) :]: weight
        for name, weight in state["model"].items()
        if name.startswith(prefix)
    }
    pretraining = OmegaConf.create(OmegaConf.to_container(cfg.model.w2v_args))
    pretraining.model.encoder_layers = cfg.model.student_layers
    state["cfg"] = pretraining
    return state


def _read_s3prl(path: str) -> dict | None:
    """The file's content, if it is a DistilHuBERT of s3prl."""
    try:
        # a zip is mapped, so that a large file of another kind costs nothing here
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception:  # fairseq's loader will say what is wrong with the file
        return None
    return state if isinstance(state, dict) and "Distiller" in state else None


def _from_s3prl(path: str, state: dict) -> dict:
    """
    Raises:
        CheckpointError: a config that is missing, or weights that no DistilHuBERT has
    """
    weights = state["Distiller"]
    given = (state.get("Config") or {}).get("distiller")
    if not isinstance(given, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"model.w2v_path={path}: its Config has no 'distiller' section")
    unknown = [
        name for name in weights if not name.startswith((*S3PRL_WEIGHTS, S3PRL_PREDICTION_HEADS))
    ]
    if unknown:
        raise CheckpointError(
            f"model.w2v_path={path}: {unknown[0]} is no weight of a DistilHuBERT, which has "
            f"{', '.join(S3PRL_WEIGHTS)} and {S3PRL_PREDICTION_HEADS}"
        )
    options = {ours: given[theirs] for theirs, ours in S3PRL_FIELDS.items() if theirs in given}
    options.setdefault("encoder_layers", 1)  # s3prl's default; its others are fairseq's
    if options["encoder_layers"] < 1:
        raise CheckpointError(f"model.w2v_path={path}: a student without transformer layers")
    cfg = pretraining_config(normalize=False, **options)
    with open_dict(cfg):
        cfg.feature_layer_norm = False  # none between CNN and projection
    kept = {k: v for k, v in weights.items() if not k.startswith(S3PRL_PREDICTION_HEADS)}
    logger.info(
        "%s: a DistilHuBERT with %d layers; %d weights of its prediction heads are left out",
        path,
        options["encoder_layers"],
        len(weights) - len(kept),
    )
    # it was trained without masks: those of fine-tuning begin as silence
    kept["mask_emb"] = torch.zeros(cfg.model.encoder_embed_dim)
    return {"cfg": cfg, "model": kept}


def _check_conv_layers(path: str, conv_feature_layers) -> None:
    """fairseq evaluates this field as Python: nothing but numbers may be in it."""
    text = str(conv_feature_layers)
    if conv_feature_layers is not None and not re.fullmatch(r"[\d\s()\[\],+*]*", text):
        raise CheckpointError(
            f"model.w2v_path={path}: conv_feature_layers={text[:100]!r} is no list of "
            "(dim, kernel, stride)"
        )


def _check_normalize(cfg, pretraining: DictConfig) -> None:
    pretrained = pretraining.task.get("normalize", pretraining.model.get("normalize", False))
    if bool(pretrained) != bool(cfg.normalize):
        raise CheckpointError(
            f"task.normalize={cfg.normalize} disagrees with the pretraining of {cfg.w2v_path}; "
            f"set task.normalize={bool(pretrained)}"
        )
