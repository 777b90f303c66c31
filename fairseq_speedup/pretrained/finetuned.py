"""Fine-tuned CTC checkpoints of every era: to decode, and to start from."""

import logging
import os
from argparse import Namespace

from fairseq.data import Dictionary
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from torch._subclasses.fake_tensor import FakeTensorMode

from fairseq_speedup.checkpoints.opening import CheckpointError, open_checkpoint
from fairseq_speedup.config import reductions
from fairseq_speedup.pretrained.encoder import build_encoder, check_weights, first_of
from fairseq_speedup.pretrained.families import (
    FAMILIES,
    Pretrained,
    as_wav2vec2,
    family_name,
    family_of,
    plain,
    rebuilt_config,
    sort_weights,
)
from fairseq_speedup.pretrained.pretraining import read_pretraining

logger = logging.getLogger(__name__)

STOCK_KINDS = ("wav2vec_ctc", "hubert_ctc")
FINETUNED_KINDS = ("speedup_ctc", *STOCK_KINDS)
PRETRAINING_TASKS = ("audio_pretraining", "hubert_pretraining")  # which fine-tuned too, until 2021
FINETUNING_TASKS = ("speedup_finetuning", "audio_finetuning", *PRETRAINING_TASKS)
ENCODER = "w2v_encoder.w2v_model."
HEAD = "w2v_encoder.proj."
FINETUNED = ", fine-tuned"  # at the end of a family
HEAD_DIM = 64  # of every public checkpoint's attention


def upgrade_finetuned(path: str, state: dict, overrides: dict) -> None:
    """:func:`upgrade` of what fairseq has loaded, where it is a fine-tuned checkpoint."""
    if kind_of(state) in FINETUNED_KINDS:
        upgrade(path, state)


def upgrade(path: str, state: dict) -> Pretrained:
    """Brings a fine-tuned checkpoint into today's form, in place: a config instead of a Namespace,
    the pretraining's config inside, HuBERT and data2vec as wav2vec 2.0.

    Returns:
        its encoder
    Raises:
        CheckpointError: a config or weights that no such model has
    """
    cfg = _whole_config(state)
    _upgrade_task(path, cfg)
    found = _pretraining(path, cfg, _encoder_weights(path, state))
    if cfg.model._name in STOCK_KINDS:
        _check_names(path, state["model"])
        with FakeTensorMode():  # shapes alone
            check_weights(build_encoder(found.cfg), found.weights, path)
        state["model"] = {ENCODER + name: weight for name, weight in found.weights.items()} | {
            name: weight for name, weight in state["model"].items() if name.startswith(HEAD)
        }
        with open_dict(cfg):
            cfg.model._name = "wav2vec_ctc"
    with open_dict(cfg):
        cfg.model.w2v_args = found.cfg
        if found.cfg.model.layer_type == "conformer":
            cfg.model.layer_type = "conformer"  # fairseq's default takes the pretraining's place
    state["cfg"], state["args"] = cfg, None
    if found.dropped:
        logger.info("%s: %d weights that only pretraining needs", path, len(found.dropped))
    return found


def _check_names(path: str, weights: dict) -> None:
    heads = [f"{HEAD}weight", f"{HEAD}bias"]
    unknown = [name for name in weights if name not in heads and not name.startswith(ENCODER)]
    missing = [name for name in heads if name not in weights]
    for kind, names in (("unknown", unknown), ("missing", missing)):
        if names:
            raise CheckpointError(
                f"{path}: {kind} weights: {first_of(names)}; a fine-tuned model has those of its "
                f"encoder, {ENCODER}*, and {' and '.join(heads)}"
            )


def _upgrade_task(path: str, cfg: DictConfig) -> None:
    kind = cfg.task.get("_name")
    if kind not in FINETUNING_TASKS:
        raise CheckpointError(
            f"{path}: a model fine-tuned with task {kind!r}; valid values: "
            f"{', '.join(FINETUNING_TASKS)}"
        )
    if kind in PRETRAINING_TASKS:
        with open_dict(cfg):
            cfg.task._name = "audio_finetuning"
            labels = cfg.task.get("labels")
            if isinstance(labels, ListConfig) and len(labels) == 1:  # HuBERT's
                cfg.task.labels = labels[0]


def kind_of(state: dict) -> str | None:
    """The name of the model that a checkpoint holds, where its config has one."""
    cfg = state.get("cfg")
    if cfg is None:
        return getattr(state.get("args"), "arch", None)
    model = cfg.get("model") or {}
    return getattr(model, "_name", None) if isinstance(model, Namespace) else model.get("_name")


def _whole_config(state: dict) -> DictConfig:
    cfg = state.get("cfg")
    if cfg is None:
        return _finetuning_of_namespace(state["args"])
    return cfg if isinstance(cfg, DictConfig) else OmegaConf.create(cfg, flags=_OBJECTS)


def where_pretraining_is(state: dict) -> str:
    """Where a fine-tuned checkpoint has the config of its pretraining, in words."""
    cfg = _whole_config(state)
    w2v_args, w2v_path = cfg.model.get("w2v_args"), cfg.model.get("w2v_path")
    if w2v_args is not None:
        return "inside, a Namespace" if isinstance(w2v_args, Namespace) else "inside"
    if _pretrained_file(w2v_path) is not None:
        return f"in {w2v_path}"
    return f"lost with {w2v_path}: sizes are those of the weights"


def from_finetuned(path: str, cfg: DictConfig, state: dict) -> Pretrained:
    """A fine-tuned checkpoint as the starting point of another fine-tuning, with its head and, of
    a reduced model, all the rest."""
    found = _pretraining(path, cfg, _encoder_weights(path, state))
    head = {name[len(HEAD) :]: w for name, w in state["model"].items() if name.startswith(HEAD)}
    dictionary = (state.get("task_state") or {}).get("target_dictionary")
    found.labels = dictionary.symbols if isinstance(dictionary, Dictionary) else None
    if cfg.model._name == "speedup_ctc" and (reduced := reductions(cfg.model)):
        encoder = {ENCODER + name: weight for name, weight in found.weights.items()}
        others = {n: w for n, w in state["model"].items() if not n.startswith(ENCODER)}
        found.reductions, found.whole = reduced, encoder | others
    if set(head) == {"weight", "bias"} and found.reductions.get("logit_upsample", 1) == 1:
        found.head = head
    found.family += FINETUNED
    return found


def _pretraining(path: str, cfg: DictConfig, weights: dict) -> Pretrained:
    """The encoder inside a fine-tuned checkpoint. Its config is inside too, or in the pretrained
    file, or, where that is lost, what the weights tell."""
    w2v_args = cfg.model.get("w2v_args")
    if w2v_args is None:
        w2v_path = cfg.model.get("w2v_path")
        pretraining = _pretrained_file(w2v_path)
        if pretraining is not None:
            family = pretraining.family
            return Pretrained(family, pretraining.cfg, *sort_weights(path, family, weights))
        normalize = plain(cfg.get("task") or {}).get("normalize", False)
        logger.warning(
            "%s has no config of its pretraining, and no pretrained model is at %s: sizes are "
            "those of the weights",
            path,
            w2v_path,
        )
        given = config_of_weights(path, weights)
        kind = "hubert" if cfg.model.get("_name") == "hubert_ctc" else "wav2vec2"
        family = family_name({**given, "_name": kind}) or kind
        kept = as_wav2vec2(path, family, given, normalize)
        return Pretrained(family, kept, *sort_weights(path, family, weights))
    if isinstance(w2v_args, Namespace):
        given = vars(w2v_args)
        kind = given.get("arch", "wav2vec2")
        normalize = given.get("normalize", False)
        return family_of(path, {**given, "_name": kind}, {"normalize": normalize}, weights)
    if w2v_args.get("model") is None:
        raise CheckpointError(f"{path}: its cfg.model.w2v_args has no section 'model'")
    if w2v_args.get("encoder_variant") is not None:  # written here: already a wav2vec 2.0
        family = w2v_args["encoder_variant"].get("family")
        if family not in FAMILIES:  # written before it was
            family = family_name(w2v_args["model"]) or "wav2vec2"
        cfg = rebuilt_config(path, w2v_args)
        return Pretrained(family, cfg, *sort_weights(path, family, weights))
    return family_of(path, w2v_args["model"], w2v_args.get("task"), weights)


def _pretrained_file(path: str | None) -> Pretrained | None:
    """What a fine-tuned checkpoint began as, if that is here."""
    if not path or not os.path.isfile(path):
        return None
    state = open_checkpoint(path)
    # a checkpoint that names a fine-tuned one, itself perhaps, would be followed without end
    return None if kind_of(state) in FINETUNED_KINDS else read_pretraining(path, state)


def _encoder_weights(path: str, state: dict) -> dict:
    weights = {
        name[len(ENCODER) :]: weight
        for name, weight in state["model"].items()
        if name.startswith(ENCODER)
    }
    if not weights:
        raise CheckpointError(f"{path} has no weights under {ENCODER}")
    return weights


def _finetuning_of_namespace(args) -> DictConfig:
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
