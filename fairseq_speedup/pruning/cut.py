"""Cuts out of a model what its gates close."""

import re
from dataclasses import fields

import torch
from fairseq.modules.fp32_group_norm import Fp32GroupNorm
from omegaconf import OmegaConf, open_dict
from torch import nn

from fairseq_speedup.frontend import CnnFrontEnd
from fairseq_speedup.pruning.config import PruningConfig
from fairseq_speedup.pruning.sizes import expects_projection, keep_heads, keep_units, linear


@torch.no_grad()
def cut(model) -> None:
    """Makes a model with gates a plain smaller one, in place: what gates close is cut out, and the
    values of the others are multiplied into the weights that they scale. It gives what it gave in
    evaluation. Its config says its sizes. Nothing is done to a model without gates."""
    encoder = model.w2v_encoder
    gates = getattr(encoder, "pruning", None)
    if gates is None:
        return
    encoder.switch(encoder.speeds.default)
    transformer = encoder.w2v_model.encoder
    num_heads = transformer.layers[0].self_attn.num_heads
    share = gates.share_once_cut()
    _cut_cnn(encoder.w2v_model, gates.channels)
    heads, units = {}, {}  # of each layer that is there: the heads kept, the number of units
    for index, layer in zip(encoder.kept_layers, transformer.layers, strict=True):
        if str(index) in gates.heads:
            heads[index] = _cut_heads(layer, gates.heads[str(index)].values)
        if str(index) in gates.units:
            _cut_units(layer, gates.units[str(index)].values)
            units[index] = layer.fc1.out_features
    if encoder.cnn is not None:
        encoder.cnn = CnnFrontEnd(encoder.w2v_model.feature_extractor)
    encoder.pruning = None
    _say_sizes(model, share, heads, units, num_heads)


def _say_sizes(model, share: float, heads: dict, units: dict, num_heads: int) -> None:
    """Brings the model's config up to date: its layers are all that there are."""
    cfg, encoder = model.cfg, model.w2v_encoder
    kept = encoder.kept_layers
    pruned: dict = {"share": round(share, 6)}
    with open_dict(cfg):
        pretraining = OmegaConf.create(OmegaConf.to_container(cfg.w2v_args, enum_to_str=True))
        sizes = pretraining.model
        if encoder.cnn is not None:
            if expects_projection(sizes, encoder.cnn.conv_layers[-1][0]):
                pruned["projected"] = True
            layers = ", ".join(str(tuple(layer)) for layer in encoder.cnn.conv_layers)
            sizes.conv_feature_layers = f"[{layers}]"
            blocks = encoder.w2v_model.feature_extractor.conv_layers
            sizes.conv_bias = blocks[0][0].bias is not None
        sizes.encoder_layers = len(kept)
        if any(len(each) < num_heads for each in heads.values()):
            pruned["heads"] = [heads[index] for index in kept]
        if len(set(units.values())) > 1 or 0 in units.values():
            pruned["units"] = [units[index] for index in kept]
        elif units:
            sizes.encoder_ffn_embed_dim = units[kept[0]]
        with open_dict(pretraining):
            variant = {**(pretraining.get("encoder_variant") or {})}
            variant.pop("widths", None)  # of the model before
            pretraining.encoder_variant = {**variant, "pruned": pruned}
        cfg.w2v_args = pretraining
        for option in fields(PruningConfig):
            if option.name in cfg and option.name != "_name":
                cfg[option.name] = option.default
        if kept != list(range(len(kept))):
            renumber_options(cfg, encoder)


def renumber_options(cfg, encoder) -> None:
    """Makes the options of a config that name layers name the places of those that are left, in
    place."""
    place = {index: position for position, index in enumerate(encoder.kept_layers)}
    cfg.keep_layers = "all"
    for stage in encoder.stages:
        stage.renumber(cfg, place)


def renumbered(state_dict: dict, kept: list[int]) -> dict:
    """Weights of a model that keeps the layers ``kept`` of another's, by their places."""
    place = {str(index): str(position) for position, index in enumerate(kept)}
    return {
        re.sub(
            r"^(w2v_encoder\.(?:w2v_model\.encoder\.layers|exit_heads)\.)(\d+)(?=\.)",
            lambda found: found[1] + place[found[2]],
            name,
        ): weight
        for name, weight in state_dict.items()
    }


def _cut_cnn(w2v_model, gates) -> None:
    if not gates:
        return
    blocks = w2v_model.feature_extractor.conv_layers
    before = None  # factors of the channels that the next layer is given
    for position, block in enumerate(blocks):
        conv = _plain(block[0])
        if before is not None:
            kept = before.nonzero()[:, 0]
            conv.weight = _of(conv.weight[:, kept] * before[kept, None])
            conv.in_channels = len(kept)
        before = None
        if str(position) in gates:
            before = gates[str(position)].values
            kept = before.nonzero()[:, 0]
            conv.weight = _of(conv.weight[kept])
            conv.bias = None if conv.bias is None else _of(conv.bias[kept])
            conv.out_channels = len(kept)
            norm = block[2]
            if isinstance(norm, nn.Sequential):
                norm[1] = _cut_norm(_plain(norm[1]), kept)
            elif isinstance(norm, Fp32GroupNorm):
                _cut_norm(norm, kept)
                norm.num_groups = norm.num_channels = len(kept)
        block[0] = conv
    if before is None:
        return
    kept = before.nonzero()[:, 0]
    if isinstance(w2v_model.layer_norm, nn.LayerNorm):
        w2v_model.layer_norm = _cut_norm(_plain(w2v_model.layer_norm), kept)
    projection = w2v_model.post_extract_proj
    w2v_model.post_extract_proj = _linear(
        projection.weight[:, kept] * before[kept], projection.bias
    )
    w2v_model.embed = len(kept)


def _cut_norm(norm, kept):
    norm.weight, norm.bias = _of(norm.weight[kept]), _of(norm.bias[kept])
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (len(kept),)
    return norm


def _cut_heads(layer, factors) -> list[int]:
    """Cuts a layer's attention; returns the heads that are kept."""
    attention = layer.self_attn
    kept = factors.nonzero()[:, 0]
    index = torch.arange(attention.num_heads * attention.head_dim, device=factors.device)
    index = index.unflatten(0, (attention.num_heads, attention.head_dim))[kept].flatten()
    scale = factors[kept].repeat_interleave(attention.head_dim)
    keep_heads(layer, kept.tolist())
    for name in ("q_proj", "k_proj", "v_proj"):
        whole = getattr(attention, name)
        setattr(layer.self_attn, name, _linear(whole.weight[index], whole.bias[index]))
    whole = attention.out_proj
    layer.self_attn.out_proj = _linear(whole.weight[:, index] * scale, whole.bias)
    return kept.tolist()


def _cut_units(layer, factors) -> None:
    kept = factors.nonzero()[:, 0]
    fc1, fc2 = layer.fc1, layer.fc2
    keep_units(layer, len(kept))
    layer.fc1 = _linear(fc1.weight[kept], fc1.bias[kept])
    layer.fc2 = _linear(fc2.weight[:, kept] * factors[kept], fc2.bias)


def _linear(weight, bias) -> nn.Linear:
    made = linear(weight.size(1), weight.size(0))
    made.weight, made.bias = _of(weight), _of(bias)
    return made


def _of(values) -> nn.Parameter:
    return nn.Parameter(values.detach().clone())


def _plain(layer):
    """A layer that gates scaled as what it was; any other as it is."""
    kind = getattr(layer, "replaced", None)
    if kind is None:
        return layer
    made = kind.__new__(kind)
    made.__dict__.update(layer.__dict__)
    for name in ("gate", "repeats", "replaced"):
        del made.__dict__[name]
    return made
