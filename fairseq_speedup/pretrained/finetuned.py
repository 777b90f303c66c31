"""Fine-tuned CTC checkpoints of every era: to decode, and to start from."""

import logging
import os

from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from fairseq_speedup.checkpoints import CheckpointError
from fairseq_speedup.pretrained.families import (
    RELATIVE_BIAS,
    Pretrained,
    as_wav2vec2,
    family_name,
    family_of,
    plain,
    sort_weights,
)

logger = logging.getLogger(__name__)

STOCK_KINDS = ("wav2vec_ctc", "hubert_ctc")
FINETUNED_KINDS = ("speedup_ctc", *STOCK_KINDS)
ENCODER = "w2v_encoder.w2v_model."
HEAD = "w2v_encoder.proj."
FINETUNED = ", fine-tuned"  # at the end of a family
HEAD_DIM = 64  # of every public checkpoint's attention


def upgrade_finetuned(path: str, state: dict, overrides: dict) -> None:
    """Brings a stock fine-tuned checkpoint into today's form, in place: a config instead of a
    Namespace, the pretraining's config inside, HuBERT and data2vec as wav2vec 2.0. Other files and
    those that need none of it stay as they are."""
    cfg = state.get("cfg")
    if cfg is None and state.get("args") is not None:
        kind = getattr(state["args"], "arch", None)
        if kind not in STOCK_KINDS:
            return
        cfg = _of_namespace(state["args"])
    if not cfg or not cfg.get("model") or cfg["model"].get("_name") not in STOCK_KINDS:
        return
    cfg = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(cfg)
    weights = _encoder_weights(path, state)
    pretraining = _pretraining(path, cfg, weights)
    kept, dropped = sort_weights(path, pretraining.family, weights)
    state["model"] = {ENCODER + name: weight for name, weight in kept.items()} | {
        name: weight for name, weight in state["model"].items() if name.startswith(HEAD)
    }
    with open_dict(cfg):
        cfg.model._name = "wav2vec_ctc"
        cfg.model.w2v_args = pretraining.cfg
        if pretraining.cfg.model.layer_type == "conformer":
            cfg.model.layer_type = "conformer"  # fairseq's default takes the pretraining's place
        if cfg.task.get("_name") == "audio_pretraining":  # which fine-tuned too, in 2020
            cfg.task._name = "audio_finetuning"
    state["cfg"], state["args"] = cfg, None
    if dropped:
        logger.info("%s: %d weights that only pretraining needs", path, len(dropped))


def from_finetuned(path: str, cfg: DictConfig, state: dict) -> Pretrained:
    """A fine-tuned checkpoint as the starting point of another fine-tuning, with its head.

    Raises:
        CheckpointError: a model with reductions, which is not a pretrained encoder
    """
    from fairseq_speedup.models.config import switched_on

    if cfg.model._name == "speedup_ctc":
        reductions = switched_on(cfg.model)
        if reductions:
            named = ", ".join(f"{name}={value}" for name, value in reductions.items())
            raise CheckpointError(
                f"{path} is a reduced model ({named}), not a pretrained one; to go on training it, "
                "give it as checkpoint.finetune_from_model, with its model.w2v_path and options"
            )
    found = _pretraining(path, cfg, _encoder_weights(path, state))
    head = {name[len(HEAD) :]: w for name, w in state["model"].items() if name.startswith(HEAD)}
    dictionary = (state.get("task_state") or {}).get("target_dictionary")
    found.head = head if set(head) == {"weight", "bias"} else {}
    found.labels = dictionary.symbols if dictionary is not None else None
    found.family += FINETUNED
    return found


def _pretraining(path: str, cfg: DictConfig, weights: dict) -> Pretrained:
    """The encoder inside a fine-tuned checkpoint. Its config is inside too, or in the pretrained
    file, or, where that is lost, what the weights tell."""
    w2v_args = cfg.model.get("w2v_args")
    if w2v_args is None:
        w2v_path = cfg.model.get("w2v_path")
        if w2v_path and os.path.isfile(w2v_path):
            from fairseq_speedup.pretrained.read import read_file

            pretraining = read_file(w2v_path)
            family = pretraining.family.removesuffix(FINETUNED)
            return Pretrained(family, pretraining.cfg, *sort_weights(path, family, weights))
        normalize = plain(cfg.get("task") or {}).get("normalize", False)
        logger.warning(
            "%s has no config of its pretraining, and %s is not here: sizes are taken from the "
            "weights",
            path,
            w2v_path,
        )
        given = config_of_weights(path, weights)
        kind = "hubert" if cfg.model.get("_name") == "hubert_ctc" else "wav2vec2"
        family = family_name({**given, "_name": kind})
        kept = as_wav2vec2(path, family, given, normalize)
        return Pretrained(family, kept, *sort_weights(path, family, weights))
    if not isinstance(w2v_args, DictConfig | dict):  # a Namespace
        given = vars(w2v_args)
        kind = given.get("arch", "wav2vec2")
        normalize = given.get("normalize", False)
        return family_of(path, {**given, "_name": kind}, {"normalize": normalize}, weights)
    if w2v_args.get("encoder_variant") is not None:  # written here: already a wav2vec 2.0
        family = "wavlm" if RELATIVE_BIAS in weights else family_name(w2v_args["model"])
        kept, dropped = sort_weights(path, family, weights)
        return Pretrained(family, OmegaConf.create(w2v_args), kept, dropped)
    return family_of(path, w2v_args["model"], w2v_args.get("task"), weights)


def _encoder_weights(path: str, state: dict) -> dict:
    weights = {
        name[len(ENCODER) :]: weight
        for name, weight in state["model"].items()
        if name.startswith(ENCODER)
    }
    if not weights:
        raise CheckpointError(f"{path} has no weights under {ENCODER}")
    return weights


def _of_namespace(args) -> DictConfig:
    """The config of a fine-tuned checkpoint of fairseq before 1.0: one flat Namespace."""
    given = dict(vars(args))
    cfg = OmegaConf.create({"model": {"_name": given["arch"]}, "task": {}}, flags=_OBJECTS)
    for name in Wav2Vec2CtcConfig.__dataclass_fields__:
        if name in given and name not in ("_name", "w2v_args"):
            cfg.model[name] = given[name]
    for name in AudioFinetuningConfig.__dataclass_fields__:
        if name in given and name != "_name":
            cfg.task[name] = given[name]
    cfg.task._name = "audio_finetuning"
    w2v_args = given.get("w2v_args")
    if w2v_args is not None:
        arguments = w2v_args if isinstance(w2v_args, dict) else vars(w2v_args)
        if "model" in arguments:
            cfg.model.w2v_args = arguments
        else:
            cfg.model.w2v_args = {
                "model": {**arguments, "_name": arguments.get("arch", "wav2vec2")},
                "task": {"normalize": arguments.get("normalize", False)},
            }
    cfg.model.normalize = given.get("normalize", False)
    return cfg


_OBJECTS = {"allow_objects": True}


def config_of_weights(path: str, weights: dict) -> dict:
    """The sizes of a public wav2vec 2.0, Conformer or HuBERT encoder, from its weights.

    Raises:
        CheckpointError: weights without a CNN or transformer
    """
    layers = {int(n.split(".")[2]) for n in weights if n.startswith("encoder.layers.")}
    convolutions = sorted(
        (int(n.split(".")[2]), n)
        for n in weights
        if n.startswith("feature_extractor.conv_layers.") and n.endswith(".0.weight")
    )
    if not layers or not convolutions:
        raise CheckpointError(f"{path}: no CNN or no transformer among its weights")
    kernels = [tuple(weights[name].shape) for _, name in convolutions]
    # every public CNN has strides 5, 2, 2, ...: the weights tell kernels and widths alone
    strides = [5] + [2] * (len(kernels) - 1)
    conv_feature_layers = [(k[0], k[2], s) for k, s in zip(kernels, strides, strict=True)]
    layer_norm = "feature_extractor.conv_layers.1.2.1.weight" in weights
    dim = weights["encoder.layer_norm.weight"].numel()
    groups_dim, kernel = weights["encoder.pos_conv.0.weight_v"].shape[1:]
    last = f"encoder.layers.{max(layers)}."
    conformer = _conformer_of_weights(weights, last)
    ffn = weights[f"{last}ffn1.w_1.weight" if conformer else f"{last}fc1.weight"]
    return {
        "extractor_mode": "layer_norm" if layer_norm else "default",
        "layer_norm_first": layer_norm,  # as in every public model
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in weights,
        "conv_feature_layers": str(conv_feature_layers),
        "encoder_layers": max(layers) + 1,
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": ffn.size(0),
        "encoder_attention_heads": max(1, dim // HEAD_DIM),
        "conv_pos": kernel,
        "conv_pos_groups": dim // groups_dim,
        **conformer,
    }


def _conformer_of_weights(weights: dict, layer: str) -> dict:
    """What the weights of the layer named ``layer`` tell of a public Conformer; {} of another."""
    kernel = weights.get(f"{layer}conv_module.depthwise_conv.weight")
    if kernel is None:
        return {}
    return {
        "layer_type": "conformer",
        "attn_type": "espnet",
        "pos_enc_type": "rel_pos" if f"{layer}self_attn.linear_pos.weight" in weights else "rope",
        "depthwise_conv_kernel_size": kernel.size(2),
    }
