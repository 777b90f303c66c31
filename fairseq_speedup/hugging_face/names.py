"""Hugging Face's names of weights and fairseq's, in both directions."""

import re

from fairseq_speedup.hugging_face.config import without_prefix

# one kind of weight each: (fairseq's wav2vec 2.0, Hugging Face)
NAMES = [
    ("mask_emb", "masked_spec_embed"),
    ("feature_extractor.conv_layers.{}.0.", "feature_extractor.conv_layers.{}.conv."),
    ("feature_extractor.conv_layers.{}.2.1.", "feature_extractor.conv_layers.{}.layer_norm."),
    ("feature_extractor.conv_layers.0.2.", "feature_extractor.conv_layers.0.layer_norm."),
    ("layer_norm.", "feature_projection.layer_norm."),
    ("post_extract_proj.", "feature_projection.projection."),
    ("encoder.pos_conv.{}.0.", "encoder.pos_conv_embed.layers.{}.conv."),
    ("encoder.pos_conv.0.", "encoder.pos_conv_embed.conv."),
    ("encoder.layer_norm.", "encoder.layer_norm."),
    ("encoder.layers.{}.self_attn.grep_linear.", "encoder.layers.{}.attention.gru_rel_pos_linear."),
    ("encoder.layers.{}.self_attn.grep_a", "encoder.layers.{}.attention.gru_rel_pos_const"),
    ("encoder.relative_attention_bias.", "encoder.layers.0.attention.rel_attn_embed."),
    ("encoder.layers.{}.self_attn_layer_norm.", "encoder.layers.{}.layer_norm."),
    ("encoder.layers.{}.self_attn.", "encoder.layers.{}.attention."),
    ("encoder.layers.{}.fc1.", "encoder.layers.{}.feed_forward.intermediate_dense."),
    ("encoder.layers.{}.fc2.", "encoder.layers.{}.feed_forward.output_dense."),
    ("encoder.layers.{}.final_layer_norm.", "encoder.layers.{}.final_layer_norm."),
]
# of Conformer layers; those that are not here are as above
CONFORMER_NAMES = [
    ("encoder.embed_positions.", "encoder.embed_positions."),
    ("encoder.layers.{}.self_attn_layer_norm.", "encoder.layers.{}.self_attn_layer_norm."),
    ("encoder.layers.{}.self_attn.", "encoder.layers.{}.self_attn."),
    ("encoder.layers.{}.conv_module.", "encoder.layers.{}.conv_module."),
    ("encoder.layers.{}.ffn{}.layer_norm.", "encoder.layers.{}.ffn{}_layer_norm."),
    ("encoder.layers.{}.ffn{}.w_1.", "encoder.layers.{}.ffn{}.intermediate_dense."),
    ("encoder.layers.{}.ffn{}.w_2.", "encoder.layers.{}.ffn{}.output_dense."),
]
# the ends of weights of a weight-normed convolution: old and new form there, fairseq's here
WEIGHT_NORM = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
HEAD = "lm_head."


def to_fairseq(name: str, group_norm: bool) -> str | None:
    """fairseq's name of a weight of an encoder, None for one that it does not have.

    Args:
        group_norm: whether the CNN has a group norm, whose name depends on it
    """
    name = without_prefix(name)
    for theirs, ours in WEIGHT_NORM.items():
        if name.endswith(theirs):
            name = name[: -len(theirs)] + ours
    for ours, theirs in CONFORMER_NAMES + NAMES:
        if group_norm and ours.startswith("feature_extractor.conv_layers.{}.2"):
            continue
        found = _replace(name, theirs, ours)
        if found is not None:
            return found
    return None


def from_fairseq(name: str, group_norm: bool, conformer: bool = False) -> str | None:
    """The other way round; the new form of weight norm.

    Args:
        conformer: whether the layers are Conformers, which Hugging Face names otherwise
    """
    for theirs, ours in WEIGHT_NORM.items():
        if name.endswith(ours):
            name = name[: -len(ours)] + theirs
    for ours, theirs in CONFORMER_NAMES * conformer + NAMES:
        if ours.startswith("feature_extractor.conv_layers.0.2.") and not group_norm:
            continue
        found = _replace(name, ours, theirs)
        if found is not None:
            return found
    return None


def _replace(name: str, old: str, new: str) -> str | None:
    pattern = re.escape(old).replace(r"\{\}", r"(\d+)")
    match = re.match(pattern, name)
    if match is None:
        return None
    filled = new.format(*match.groups()) if match.groups() else new
    return filled + name[match.end() :]
