"""Widths: the first channels, heads and units of a model whose parts are in the order of what they
are worth, so that one model's weights are those of narrower ones (arXiv 2004.04037; of speech
models LightHuBERT, arXiv 2203.15610).

``fairseq_speedup widths`` orders a model's parts and says in the config of its pretraining how many
each width has: ``encoder_variant.widths``, a list of

- ``width``, the share of the model's MACs that was asked for, by which options name it,
- ``share``, that it has,
- ``channels``, of each convolution, and ``units``, of each layer: so many of the first,
- ``heads``, of each layer: the indices of those that it has (a relative position bias knows heads
  by their places, so they stay where they are).

What a width leaves whole is not in it.
"""

from dataclasses import dataclass, field, replace
from typing import List  # noqa: UP035  fairseq reads the name in a field's type

import torch
from fairseq.dataclass import FairseqDataclass
from omegaconf import OmegaConf, open_dict
from torch import nn

from fairseq_speedup.checkpoints import CheckpointError
from fairseq_speedup.pruning.placing import place_gates
from fairseq_speedup.pruning.sizes import expects_projection
from fairseq_speedup.saved_configs import encoder_variant, evaluate

FIELD = "encoder_variant.widths"
WHOLE = 1.0
HOW = "python -m fairseq_speedup widths gives a fine-tuned checkpoint widths"


@dataclass
class WidthsConfig(FairseqDataclass):
    width: float = field(
        default=WHOLE,
        metadata={
            "help": "share of the MACs of a model that `fairseq_speedup widths` has ordered, one "
            "of those that it was given: so many of each layer's parts are run; 1 is all"
        },
    )
    widths: List[float] = field(  # noqa: UP006
        default_factory=list,
        metadata={
            "help": "draw the width from these, 1 among them, for each update while training. "
            "Training computes all parts; once loaded, a model has those of its width alone"
        },
    )


def check_widths(cfg: WidthsConfig) -> None:
    """Raises ValueError for options that are wrong whatever the pretrained model."""
    if not 0 < cfg.width <= WHOLE:
        raise ValueError(
            f"width={cfg.width} is out of range: it must be above 0 and at most 1, a share of the "
            "model's MACs"
        )
    widths = list(cfg.widths)
    if not widths:
        return
    if len(set(widths)) < len(widths) or not all(0 < each <= WHOLE for each in widths):
        raise ValueError(f"widths={widths}: each must be above 0 and at most 1, and named once")
    if WHOLE not in widths or cfg.width != WHOLE:
        raise ValueError(
            f"widths={widths} with width={cfg.width}: training at many widths is of the whole "
            "model too: add 1 to widths, and leave width out"
        )
    if cfg.prune_target != 1:
        raise ValueError(
            f"widths={widths} with prune_target={cfg.prune_target}: gates would cut what widths "
            "order; leave one of them out"
        )
    if cfg.ddp_backend == "fully_sharded":
        raise ValueError(
            f"widths={widths} does not work with distributed_training.ddp_backend=fully_sharded, "
            "which shards the weights that they scale: set it to legacy_ddp or c10d"
        )


@dataclass(frozen=True)
class Width:
    """What a width has of a model with all its layers. None is all of it.

    channels: of each convolution, the first so many
    heads: of each layer, their indices
    units: of each layer, the first so many
    """

    width: float
    share: float
    channels: list[int] | None = None
    heads: list[list[int]] | None = None
    units: list[int] | None = None

    def as_dict(self) -> dict:
        return {name: value for name, value in vars(self).items() if value is not None}


def widths_of(pretraining) -> dict[float, Width]:
    """Those that a pretraining's config has, by name, the widest first.

    Raises:
        CheckpointError: sizes that its model cannot have
    """
    found = encoder_variant(pretraining, "widths") or []
    widths = [_checked(each, pretraining.model) for each in found]
    return {each.width: each for each in sorted(widths, key=lambda each: -each.width)}


def _checked(given, model) -> Width:
    """
    Args:
        model: the options of the pretrained model
    """
    most = {
        "channels": [dim for dim, _, _ in evaluate(model.conv_feature_layers, "widths")],
        "heads": [model.encoder_attention_heads] * model.encoder_layers,
        "units": [model.encoder_ffn_embed_dim] * model.encoder_layers,
    }
    try:
        made = Width(**given)
        named = 0 < made.width < WHOLE and 0 < made.share <= WHOLE
    except TypeError as error:
        raise CheckpointError(f"{FIELD}: {str(given)[:100]} is no width: {error}") from None
    if not named:
        raise CheckpointError(f"{FIELD}: width={made.width}, share={made.share} are no shares")
    for part, sizes in most.items():
        values = getattr(made, part)
        if values is None:
            continue
        valid = isinstance(values, list) and len(values) == len(sizes)
        for value, size in zip(values, sizes, strict=True) if valid else []:
            if part == "heads":
                inside = isinstance(value, list) and all(
                    type(head) is int and 0 <= head < size for head in value
                )
                valid = valid and inside and sorted(set(value)) == value
            else:
                least = 1 if part == "channels" else 0
                valid = valid and type(value) is int and least <= value <= size
        if not valid:
            raise CheckpointError(
                f"{FIELD}, width {made.width:g}: {part}={str(values)[:100]} are not sizes of a "
                f"model that has {sizes}"
            )
    return made


def width_named(pretraining, width: float, option: str, path: str | None) -> Width:
    """
    Args:
        option: that names it, and path: of the model, for messages
    Raises:
        ValueError: there is none of that name
    """
    widths = widths_of(pretraining)
    if width not in widths:
        has = f"has widths {', '.join(f'{each:g}' for each in widths)}" if widths else "has none"
        model = f"the model {path}" if path else "the model"
        raise ValueError(f"{option}: {model} {has}, beside the whole; {HOW}")
    return widths[width]


# -- one of them, for good -----------------------------------------------------------------------


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


# -- many, while training ------------------------------------------------------------------------


class _Masks(nn.Module):
    """A group of parts at each width: 1 where the width has a part, 0 where not. It scales what a
    layer reads, as gates do.

    Args:
        masks: (widths, size)
    """

    def __init__(self, masks: list[list[float]]):
        super().__init__()
        self.register_buffer("masks", torch.tensor(masks), persistent=False)
        self.chosen = 0

    @property
    def values(self) -> torch.Tensor:
        return self.masks[self.chosen]


class SwitchedWidths(nn.Module):
    """The widths of an encoder that is trained at many: the parts that the chosen one lacks are
    nothing to the layers that read them. It takes the place of those layers.

    Args:
        encoder: a SpeedupEncoder with the parts of the whole model
        widths: of it, beside the whole
    """

    def __init__(self, encoder, widths: list[Width]):
        super().__init__()
        self.places = {WHOLE: 0} | {each.width: 1 + n for n, each in enumerate(widths)}
        channels: dict[int, _Masks] = {}
        if encoder.cnn is not None and any(each.channels for each in widths):
            for position, (dim, _, _) in enumerate(encoder.cnn.conv_layers):
                counts = [(each.channels or [])[position : position + 1] for each in widths]
                channels[position] = _first(dim, [c[0] if c else dim for c in counts])
        if encoder.w2v_model.post_extract_proj is None:
            channels.pop(len(channels) - 1, None)
        heads, units = {}, {}
        layers = zip(encoder.kept_layers, encoder.w2v_model.encoder.layers, strict=True)
        for index, layer in layers:
            if any(each.heads for each in widths):
                num_heads = layer.self_attn.num_heads
                every = range(num_heads)
                kept = [every] + [each.heads[index] if each.heads else every for each in widths]
                heads[index] = _Masks([[float(h in of) for h in every] for of in kept])
            if any(each.units for each in widths):
                size = layer.fc1.out_features
                units[index] = _first(
                    size, [each.units[index] if each.units else size for each in widths]
                )
        self.groups = nn.ModuleList([*channels.values(), *heads.values(), *units.values()])
        place_gates(encoder, channels, heads, units)

    def switch(self, width: float) -> None:
        for masks in self.groups:
            masks.chosen = self.places[width]


def _first(size: int, counts: list[int]) -> _Masks:
    return _Masks([[float(n < count) for n in range(size)] for count in [size, *counts]])


def build_widths(encoder, cfg) -> SwitchedWidths | None:
    """Of a model that is trained at many, in place of its layers; else None.

    Raises:
        ValueError: a width that the model has not
    """
    chosen = [each for each in cfg.widths if each != WHOLE]
    if not chosen:
        return None
    named = f"widths={list(cfg.widths)}"
    return SwitchedWidths(
        encoder, [width_named(cfg.w2v_args, each, named, cfg.w2v_path) for each in chosen]
    )
