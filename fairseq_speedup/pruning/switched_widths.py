"""Many widths of one model, while it is trained."""

import torch
from torch import nn

from fairseq_speedup.pruning.placing import place_gates
from fairseq_speedup.pruning.widths import WHOLE, Width, width_named


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
