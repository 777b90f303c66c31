"""Options of an encoder, Hugging Face's and fairseq's, in both directions."""

from omegaconf import DictConfig

from fairseq_speedup.checkpoints.opening import CheckpointError

# model_type -> (beginning of its classes' names, the family here); weights of a model with a head
# begin with the model_type
MODEL_TYPES = {
    "wav2vec2": ("Wav2Vec2", "wav2vec2"),
    "hubert": ("Hubert", "hubert"),
    "wavlm": ("WavLM", "wavlm"),
    "data2vec-audio": ("Data2VecAudio", "data2vec_audio"),
}
OWN_OPTIONS = ("wavlm", "data2vec-audio")  # these types are told by their options
# one option each, with the same values: (fairseq's wav2vec 2.0, Hugging Face)
OPTIONS = [
    ("conv_bias", "conv_bias"),
    ("encoder_layers", "num_hidden_layers"),
    ("encoder_embed_dim", "hidden_size"),
    ("encoder_ffn_embed_dim", "intermediate_size"),
    ("encoder_attention_heads", "num_attention_heads"),
    ("conv_pos_groups", "num_conv_pos_embedding_groups"),
    ("activation_fn", "hidden_act"),
]
POSITIONS = {"relative": "rel_pos", "rotary": "rope"}  # of a Conformer: theirs, fairseq's
EXTRACTOR_MODES = {"default": "group", "layer_norm": "layer"}
# the only values that the other side can have, for each option
FIXED_HERE = {
    "feat_extract_activation": ("gelu",),
    "hidden_act": ("gelu", "relu"),
    "layer_norm_eps": (1e-5,),
    "conv_pos_batch_norm": (False,),
    "add_adapter": (False,),
    "adapter_attn_dim": (None,),
}
FIXED_THERE = {
    "layer_type": ("transformer",),
    "activation_fn": ("gelu", "relu"),
    "quantize_input": (False,),
    "conv_pos_batch_norm": (False,),
}
DATA2VEC_FIXED_THERE = {"extractor_mode": ("layer_norm",), "layer_norm_first": (False,)}


def wav2vec2_options(config: dict) -> dict:
    """fairseq's options of an encoder, from ``config.json``."""
    kernel, depth = config["num_conv_pos_embeddings"], 1
    data2vec = config["model_type"] == "data2vec-audio"
    if data2vec:
        depth, kernel = config["num_conv_pos_embeddings"], config["conv_pos_kernel_size"]
        kernel = kernel * depth  # fairseq divides it among the convolutions
    modes = {theirs: ours for ours, theirs in EXTRACTOR_MODES.items()}
    options = {
        # data2vec's is no option there
        "extractor_mode": "layer_norm" if data2vec else modes[config["feat_extract_norm"]],
        "conv_feature_layers": str(conv_layers_of_config(config)),
        "layer_norm_first": config.get("do_stable_layer_norm", False),
        "conv_pos": kernel,
        "pos_conv_depth": depth,
        **{ours: config[theirs] for ours, theirs in OPTIONS},
    }
    if config["model_type"] == "wavlm":
        options |= {
            "relative_position_embedding": True,
            "gru_rel_pos": True,
            "num_buckets": config["num_buckets"],
            "max_distance": config["max_bucket_distance"],
        }
    if config["model_type"] == "wav2vec2-conformer":
        options |= _conformer_options(config)
    return options


def _conformer_options(config: dict) -> dict:
    """
    Raises:
        ValueError: what fairseq's Conformer cannot be
    """
    positions = config["position_embeddings_type"]
    if positions not in POSITIONS:
        raise ValueError(
            f"position_embeddings_type={positions!r}: fairseq's Conformer has "
            f"{' or '.join(POSITIONS)} positions"
        )
    if config["hidden_act"] not in ("swish", "silu"):
        raise ValueError(f"hidden_act={config['hidden_act']!r}: fairseq's Conformer has swish")
    return {
        "layer_type": "conformer",
        "attn_type": "espnet",
        "pos_enc_type": POSITIONS[positions],
        "depthwise_conv_kernel_size": config["conv_depthwise_kernel_size"],
        "layer_norm_first": True,  # Hugging Face's norm after the last layer
        "activation_fn": "gelu",  # fairseq's Conformer does not read it
    }


def conv_layers_of_config(config: dict) -> list[tuple[int, int, int]]:
    """(dim, kernel_size, stride) of each convolution of a ``config.json``."""
    return list(zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True))


def family_of_config(config: dict) -> str:
    """The family here of a ``config.json``."""
    if not config.get("feat_proj_layer_norm", True):
        return "distilhubert"
    return MODEL_TYPES[config["model_type"]][1]


def config_options(path: str, cfg: DictConfig, conv_layers) -> dict:
    """Hugging Face's options, ``model_type`` among them, of an encoder.

    Args:
        path: of its checkpoint, for messages
        cfg: of its pretraining, as :class:`Pretrained` has it
        conv_layers: (dim, kernel_size, stride) of each convolution
    Raises:
        CheckpointError: an option whose value no such model can have
    """
    model, variant = cfg.model, cfg.get("encoder_variant") or {}
    check_fixed(path, model, FIXED_THERE)
    _check_cut(path, variant.get("pruned") or {})
    if variant.get("low_rank"):
        raise CheckpointError(
            f"{path} is of low rank: it has two matrices where a Hugging Face model has one; "
            "convert the model it was made of"
        )
    feature_layer_norm = variant.get("feature_layer_norm", True)
    positions = variant.get("relative_positions")
    dims, kernels, strides = zip(*conv_layers, strict=True)
    options = {
        "conv_dim": list(dims),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "feat_extract_norm": EXTRACTOR_MODES[model.extractor_mode],
        "do_stable_layer_norm": model.layer_norm_first,
        "num_conv_pos_embeddings": model.conv_pos,
        **{theirs: model[ours] for ours, theirs in OPTIONS},
    }
    if positions is not None:
        check_fixed(path, positions, {"gated": (True,)})
        return options | {
            "model_type": "wavlm",
            "num_buckets": positions.num_buckets,
            "max_bucket_distance": positions.max_distance,
        }
    if model.pos_conv_depth > 1:
        check_fixed(path, model, DATA2VEC_FIXED_THERE)
        return options | {
            "model_type": "data2vec-audio",
            "num_conv_pos_embeddings": model.pos_conv_depth,
            "conv_pos_kernel_size": max(3, model.conv_pos // model.pos_conv_depth),  # as fairseq
        }
    if variant.get("family") in ("hubert", "starhubert") or not feature_layer_norm:
        return options | {"model_type": "hubert", "feat_proj_layer_norm": feature_layer_norm}
    types = [
        model_type
        for model_type, (_, family) in MODEL_TYPES.items()
        if family == variant.get("family") and model_type not in OWN_OPTIONS
    ]
    return options | {"model_type": types[0] if types else "wav2vec2"}


def without_prefix(name: str) -> str:
    """A weight's name in the encoder alone: with a head, the encoder is a part of the model."""
    first, _, rest = name.partition(".")
    prefixes = {model_type.replace("-", "_") for model_type in (*MODEL_TYPES, "wav2vec2-conformer")}
    return rest if first in prefixes else name


def _check_cut(path: str, pruned) -> None:
    """Raises CheckpointError for layers of several sizes, as in what is published pruned."""
    several = [part for part in ("heads", "units") if pruned.get(part) is not None]
    if several:
        raise CheckpointError(
            f"{path} is pruned: its layers have {' and '.join(several)} in several numbers, for "
            "which a Hugging Face config has one; prune_parts=channels can be converted"
        )


def check_fixed(path: str, options, valid: dict) -> None:
    """Raises CheckpointError for an option that has none of its ``valid`` values."""
    for name, values in valid.items():
        value = options.get(name, values[0])
        if value not in values:
            named = ", ".join(map(str, values))
            raise CheckpointError(
                f"{path}: {name}={value} cannot be converted; valid values: {named}"
            )
