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

from dataclasses import dataclass, field, fields
from typing import List  # noqa: UP035  fairseq reads the name in a field's type

from fairseq.dataclass import FairseqDataclass

from fairseq_speedup.checkpoints.configs import encoder_variant, evaluate
from fairseq_speedup.checkpoints.opening import CheckpointError

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
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise CheckpointError(
            f"{FIELD}={str(found)[:100]} is no list of widths, each with its sizes"
        )
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
    unknown = sorted(given.keys() - {each.name for each in fields(Width)}, key=str)
    if unknown:
        raise CheckpointError(f"{FIELD}: a width has no field {', '.join(map(str, unknown))}")
    shares = {name: given.get(name) for name in ("width", "share")}
    for name, value in shares.items():
        if type(value) not in (int, float) or not 0 < value <= WHOLE:
            raise CheckpointError(f"{FIELD}: {name}={value!r} is no share, above 0 and at most 1")
    made = Width(**given)
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
        named = f"no widths but {', '.join(f'{each:g}' for each in widths)} and the whole"
        has = named if widths else "no widths"
        model = f"the model {path}" if path else "the model"
        raise ValueError(f"{option}: {model} has {has}; {HOW}")
    return widths[width]
