"""One width of a model, for good: a plain smaller model."""

from dataclasses import replace

import torch
from omegaconf import OmegaConf, open_dict

from fairseq_speedup.checkpoints.configs import evaluate
from fairseq_speedup.pruning.sizes import expects_projection
from fairseq_speedup.pruning.widths import FIELD, WHOLE, Width, width_named


def narrow(cfg) -> Width | None:
    """Makes a fine-tuning config that of the plain model of its ``width``, in place: the sizes in
    ``w2v_args`` are that width's, and there are no widths any more.

    Returns:
        the width, None for the whole model, whose config stays as it is
    Raises:
        ValueError: the model has no such width
    """
    if cfg.width == WHOLE:
        return None
    chosen = width_named(cfg.w2v_args, cfg.width, f"width={cfg.width:g}", cfg.w2v_path)
    if cfg.frontend != "cnn":
        chosen = replace(chosen, channels=None)
    with open_dict(cfg):
        pretraining = OmegaConf.create(OmegaConf.to_container(cfg.w2v_args, enum_to_str=True))
        pruned: dict = {"share": chosen.share}
        if chosen.channels is not None:
            sizes = pretraining.model
            layers = evaluate(sizes.conv_feature_layers, FIELD)
            layers = [(dim, *layer[1:]) for dim, layer in zip(chosen.channels, layers, strict=True)]
            if expects_projection(sizes, chosen.channels[-1]):
                pruned["projected"] = True
            sizes.conv_feature_layers = str(layers)
        for part in ("heads", "units"):
            if getattr(chosen, part) is not None:
                pruned[part] = getattr(chosen, part)
        with open_dict(pretraining):
            variant = {**pretraining.encoder_variant}
            del variant["widths"]
            pretraining.encoder_variant = {**variant, "pruned": pruned}
        cfg.w2v_args, cfg.width, cfg.widths = pretraining, WHOLE, []
    return chosen


def narrow_weights(weights: dict, chosen: Width, num_heads: int, prefix: str = "") -> None:
    """Leaves the parts of a width of the weights of a whole model, in place.

    Args:
        num_heads: of each whole layer
        prefix: of the encoder's names
    """
    before = None
    for position, count in enumerate(chosen.channels or []):
        block = f"{prefix}feature_extractor.conv_layers.{position}."
        for name in [name for name in weights if name.startswith(block)]:
            weights[name] = weights[name][:count]
        if before is not None:
            weights[f"{block}0.weight"] = weights[f"{block}0.weight"][:, :before]
        before = count
    if before is not None:
        for name in ("layer_norm.weight", "layer_norm.bias"):
            if prefix + name in weights:
                weights[prefix + name] = weights[prefix + name][:before]
        name = f"{prefix}post_extract_proj.weight"
        if name in weights:  # else the last convolution keeps all
            weights[name] = weights[name][:, :before]
    for index, kept in enumerate(chosen.heads or []):
        _narrow_heads(weights, f"{prefix}encoder.layers.{index}.self_attn.", kept, num_heads)
    for index, count in enumerate(chosen.units or []):
        layer = f"{prefix}encoder.layers.{index}."
        if f"{layer}fc1.weight" not in weights:  # removed
            continue
        for name in ("fc1.weight", "fc1.bias"):
            weights[layer + name] = weights[layer + name][:count]
        weights[f"{layer}fc2.weight"] = weights[f"{layer}fc2.weight"][:, :count]


def _narrow_heads(weights: dict, attention: str, kept: list[int], num_heads: int) -> None:
    whole = weights.get(f"{attention}out_proj.weight")
    if whole is None:  # a layer that is removed
        return
    index = torch.arange(whole.size(1)).unflatten(0, (num_heads, -1))[kept].flatten()
    for name in ("q_proj", "k_proj", "v_proj"):
        for kind in ("weight", "bias"):
            key = f"{attention}{name}.{kind}"
            weights[key] = weights[key][index]
    weights[f"{attention}out_proj.weight"] = whole[:, index]
    if f"{attention}grep_a" in weights:
        weights[f"{attention}grep_a"] = weights[f"{attention}grep_a"][:, kept]
