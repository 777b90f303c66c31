"""The families of SSL models, an entry of one table each: how it is told, which weights only its
pretraining needs, what differs."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
from omegaconf import DictConfig, OmegaConf, open_dict

from fairseq_speedup.architectures import pretraining_config
from fairseq_speedup.checkpoints.configs import UnsafeConfigError, evaluate
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.console.refusals import reason
from fairseq_speedup.transformer.conformer import ATTENTIONS

ENCODER_WEIGHTS = (
    "feature_extractor.",
    "post_extract_proj.",
    "layer_norm.",
    "mask_emb",
    "encoder.",
)
WAV2VEC2_FIELDS = {each.name for each in fields(Wav2Vec2Config)} - {"_name"}
COUNTED_LAYERS = ("encoder_layers", "pos_conv_depth")
MAX_LAYERS = 1000
RELATIVE_BIAS = "encoder.layers.0.self_attn.relative_attention_bias.weight"


@dataclass
class Pretrained:
    """An encoder as fairseq's wav2vec 2.0.

    Attributes:
        family: one of FAMILIES, or another reader's name
        cfg: fairseq's config of its pretraining; ``cfg.encoder_variant`` holds its family and what
            :func:`adapt` needs
        weights: of the encoder, under wav2vec 2.0's names
        dropped: names of those that only pretraining needs
        head: ``weight`` and ``bias`` of a CTC head, of a fine-tuned checkpoint
        labels: symbols of its dictionary, where the file has them
        reductions: options of a reduced model
        whole: every weight of a reduced model, under its names; ``weights`` are some of these
    """

    family: str
    cfg: DictConfig
    weights: dict
    dropped: list[str]
    head: dict = field(default_factory=dict)
    labels: list[str] | None = None
    reductions: dict = field(default_factory=dict)
    whole: dict = field(default_factory=dict)


def no_variant(given: dict) -> dict:
    """An encoder that is wav2vec 2.0's."""
    return {}


def relative_positions(given: dict) -> dict:
    if not given.get("relative_position_embedding"):
        return {}
    positions = {
        "num_buckets": given.get("num_buckets", 320),
        "max_distance": given.get("max_distance", 1280),
        "gated": bool(given.get("gru_rel_pos", False)),
    }
    return {"relative_positions": positions}


def no_feature_norm(given: dict) -> dict:
    """No layer norm between CNN and projection."""
    return {"feature_layer_norm": False}


def reused_maps(given: dict) -> dict:
    """Layers that reuse the attention maps of others."""
    return {"reused_attention": {"computes": list(given["computes"])}}


def pruned_before(given: dict) -> dict:
    """Layers of several sizes, and a scale after the last convolution."""
    positions = given["positions"]
    variant = {"pruned": given["pruned"], "feature_scale": True}
    if positions:
        variant["relative_positions"] = {**positions, "gated": True}
    return variant


@dataclass(frozen=True)
class Family:
    """
    Attributes:
        dropped: beginnings of the names of weights that only pretraining needs
        renamed: (pattern, replacement) of weights that have another name in wav2vec 2.0
        variant: what :func:`~fairseq_speedup.pretrained.encoder.adapt` makes otherwise, from the
            options of its pretraining
        in_fairseq: whether fairseq's config names it so; others have forms of their own (see
            :data:`~fairseq_speedup.pretrained.pretraining.FORMS`)
    """

    dropped: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    variant: Callable[[dict], dict] = no_variant
    in_fairseq: bool = True


WAV2VEC2_DROPPED = (
    "quantizer.",
    "project_q.",
    "final_proj.",
    "target_glu.",
    "input_quantizer.",
    "project_inp.",
)
LAYER = r"^encoder\.transformer\.(layers\.\d+)"
PRUNED_BEFORE = Family(  # under torchaudio's names; see dphubert.py
    dropped=("aux.",),
    renamed=(
        (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
        (r"^feature_extractor\.dummy_weight$", "layer_norm.scale"),
        (r"^encoder\.feature_projection\.layer_norm\.", "layer_norm."),
        (r"^encoder\.feature_projection\.projection\.", "post_extract_proj."),
        (r"^encoder\.transformer\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
        (LAYER + r"\.attention\.rel_attn_embed\.", "encoder.relative_attention_bias."),
        (LAYER + r"\.attention\.gru_rel_pos_const$", r"encoder.\1.self_attn.grep_a"),
        (LAYER + r"\.attention\.gru_rel_pos_linear\.", r"encoder.\1.self_attn.grep_linear."),
        (LAYER + r"\.attention\.", r"encoder.\1.self_attn."),
        (LAYER + r"\.layer_norm\.", r"encoder.\1.self_attn_layer_norm."),
        (LAYER + r"\.feed_forward\.intermediate_dense\.", r"encoder.\1.fc1."),
        (LAYER + r"\.feed_forward\.output_dense\.", r"encoder.\1.fc2."),
        (r"^encoder\.transformer\.", "encoder."),
    ),
    variant=pruned_before,
    in_fairseq=False,
)
FAMILIES = {
    "wav2vec2": Family(dropped=WAV2VEC2_DROPPED),
    # with rotary or relative positions: the positional convolution is saved and never run, and each
    # layer has the same frequencies of rotation
    "wav2vec2_conformer": Family(
        dropped=(*WAV2VEC2_DROPPED, "encoder.pos_conv."),
        renamed=((r"^encoder\.layers\.\d+\.self_attn\.rotary_emb", "encoder.embed_positions"),),
    ),
    "hubert": Family(dropped=("final_proj.", "label_embs_concat", "target_glu.")),
    "data2vec_audio": Family(dropped=("_ema", "ema.", "final_proj.", "regression_head.")),
    # the bias table belongs to the encoder: its first layer may be removed
    "wavlm": Family(
        renamed=((r"^encoder\.layers\.0\.self_attn\.(relative_attention_bias)", r"encoder.\1"),),
        variant=relative_positions,
        in_fairseq=False,
    ),
    # DistilHuBERT in the form of s3prl
    "distilhubert": Family(dropped=("output_layer.",), variant=no_feature_norm, in_fairseq=False),
    "distilled_student": Family(dropped=("heads.",), in_fairseq=False),
    "starhubert": Family(dropped=("final_proj.", "proj_head."), in_fairseq=False),
    "armhubert": Family(
        dropped=("final_proj.", "proj_head."), variant=reused_maps, in_fairseq=False
    ),
    "dphubert": PRUNED_BEFORE,
    "dpwavlm": PRUNED_BEFORE,
}


def sort_weights(path: str, family: str, weights: dict) -> tuple[dict, list[str]]:
    """Weights of the encoder under wav2vec 2.0's names, and the names of those left out.

    Raises:
        CheckpointError: a weight that the family does not have
    """
    table = FAMILIES[family]
    kept, dropped = {}, []
    for name, weight in weights.items():
        if name.startswith(table.dropped):
            dropped.append(name)
        elif not isinstance(weight, torch.Tensor):
            raise CheckpointError(f"{path}: {name} is a {type(weight).__name__}, no weight")
        elif name.startswith(ENCODER_WEIGHTS):
            for pattern, replacement in table.renamed:
                name = re.sub(pattern, replacement, name)
            kept[name] = weight
        else:
            raise CheckpointError(
                f"{path}: {name} is no weight of a {family} model, which has "
                f"{', '.join(ENCODER_WEIGHTS)}"
                + (f" and, for pretraining, {', '.join(table.dropped)}" if table.dropped else "")
            )
    return kept, dropped


def begin_masks(weights: dict, cfg: DictConfig) -> None:
    """An encoder that was trained without masks has no embedding of masked frames: those of
    fine-tuning begin as silence."""
    weights.setdefault("mask_emb", torch.zeros(cfg.model.encoder_embed_dim))


def as_wav2vec2(path: str, family: str, given: dict, normalize: bool) -> DictConfig:
    """The config of fairseq's wav2vec 2.0 with the options ``given`` that it has.

    Raises:
        CheckpointError: an option's value that wav2vec 2.0 does not allow
    """
    options = {
        name: value
        for name, value in given.items()
        if name in WAV2VEC2_FIELDS and value is not None
    }
    check_conv_layers(path, options.get("conv_feature_layers"))
    check_conformer(path, options)
    for name in COUNTED_LAYERS:
        value = options.get(name, 1)
        if not (type(value) is int and 1 <= value <= MAX_LAYERS):
            raise CheckpointError(
                f"{path}: {name}={value!r} is out of range; it must be 1 to {MAX_LAYERS}"
            )
    try:
        cfg = pretraining_config(normalize=bool(normalize), **options)
    except Exception as error:
        raise CheckpointError(
            f"{path}: its {family} config is not valid: {reason(error)}"
        ) from None
    with open_dict(cfg):
        cfg.encoder_variant = {"family": family, **FAMILIES[family].variant(given)}
    return cfg


def check_conv_layers(path: str, conv_feature_layers) -> None:
    """fairseq evaluates this field as Python.

    Raises:
        CheckpointError: anything else than a list of (dim, kernel, stride)
    """
    if conv_feature_layers is None:
        return
    try:
        layers = evaluate(conv_feature_layers, "conv_feature_layers")
        valid = all(type(n) is int and n > 0 for layer in layers for n in layer)
        valid = valid and type(layers) is list and all(len(layer) == 3 for layer in layers)
    except (UnsafeConfigError, ValueError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise CheckpointError(
            f"{path}: conv_feature_layers={str(conv_feature_layers)[:100]!r} is no list of "
            "(dim, kernel, stride)"
        )


def check_conformer(path: str, options: dict) -> None:
    """Raises CheckpointError for a Conformer that cannot be built as its config says."""
    if options.get("layer_type") != "conformer":
        return
    positions = options.get("pos_enc_type", "abs")  # fairseq's defaults
    kernel_size = options.get("depthwise_conv_kernel_size", 31)
    if positions not in ATTENTIONS:
        reason = f"pos_enc_type={positions!r} is none of {', '.join(ATTENTIONS)}"
    elif positions != "abs" and options.get("attn_type") != "espnet":
        reason = f"pos_enc_type={positions} is a part of attn_type=espnet, which it has not"
    elif not isinstance(kernel_size, int) or kernel_size % 2 == 0:
        reason = f"depthwise_conv_kernel_size={kernel_size} is no odd number"
    else:
        return
    raise CheckpointError(f"{path}: its Conformer cannot be built: {reason}")


def family_name(model_cfg) -> str | None:
    """The family of one of fairseq's models, by its config."""
    name = model_cfg.get("_name")
    if name == "wav2vec2" and model_cfg.get("layer_type") == "conformer":
        # absolute positions are wav2vec 2.0's convolution
        return name if model_cfg.get("pos_enc_type", "abs") == "abs" else "wav2vec2_conformer"
    return name


def rebuilt_config(path: str, w2v_args) -> DictConfig:
    """The config that a checkpoint written here has of its pretraining, from the fields alone that
    a wav2vec 2.0 has: a file may hold anything.

    Args:
        w2v_args: mapping with ``model`` and ``task``
    """
    normalize = plain(w2v_args.get("task") or {}).get("normalize", False)
    cfg = as_wav2vec2(path, "wav2vec2", plain(w2v_args["model"]), normalize)
    with open_dict(cfg):
        cfg.encoder_variant = plain(w2v_args.get("encoder_variant") or {})
    return cfg


def family_of(path: str, model_cfg, task_cfg, weights: dict) -> Pretrained:
    """The pretrained encoder of one of fairseq's configs.

    Args:
        model_cfg: mapping with ``_name``
        task_cfg: mapping, or None
    Raises:
        CheckpointError: a family that is not known
    """
    given = plain(model_cfg)
    family = family_name(given)
    if family not in FAMILIES or not FAMILIES[family].in_fairseq:
        raise CheckpointError(
            f"{path} holds a {family!r} model; pretrained models that can be fine-tuned here: "
            f"{', '.join(FAMILIES)}"
        )
    normalize = plain(task_cfg or {}).get("normalize", given.get("normalize", False))
    cfg = as_wav2vec2(path, family, given, normalize)
    return Pretrained(family, cfg, *sort_weights(path, family, weights))


def plain(mapping) -> dict:
    """A dict of an OmegaConf config (mandatory values that are not set left out) or a dict."""
    if isinstance(mapping, DictConfig):
        mapping = OmegaConf.to_container(mapping, enum_to_str=True, throw_on_missing=False)
    return {name: value for name, value in mapping.items() if value != "???"}
