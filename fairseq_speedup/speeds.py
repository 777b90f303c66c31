"""One model, many speeds: what is drawn for each update while training."""

import itertools
import random
from dataclasses import dataclass, field
from typing import List  # noqa: UP035  fairseq reads the name in a field's type

from fairseq.dataclass import FairseqDataclass

from fairseq_speedup.frames.pooling import MOST_FRAMES


@dataclass
class SpeedsConfig(FairseqDataclass):
    downsample_factors: List[float] = field(  # noqa: UP006
        default_factory=list,
        metadata={
            "help": "draw downsample_factor from these for each update while training; evaluation "
            "uses downsample_factor, which must be one of them"
        },
    )
    frame_pools: List[int] = field(  # noqa: UP006
        default_factory=list,
        metadata={"help": "likewise for frame_pool"},
    )
    depths: List[int] = field(  # noqa: UP006
        default_factory=list,
        metadata={
            "help": "likewise for the number of first layers that are run, of those that "
            "keep_layers keeps"
        },
    )


@dataclass(frozen=True)
class Speed:
    """One choice of each."""

    factor: float
    frame_pool: int
    depth: int
    width: float = 1.0


class Speeds:
    """The speeds of one model.

    Args:
        cfg: a ``SpeedupCtcConfig``
    Raises:
        ValueError: a value out of range or repeated, or a default that is not among the choices
    """

    def __init__(self, cfg):
        self.factors = _choices(cfg, "downsample_factors", "downsample_factor", 1)
        self.frame_pools = _choices(cfg, "frame_pools", "frame_pool", 1)
        if max(self.frame_pools) > MOST_FRAMES:
            raise ValueError(
                f"frame_pools={self.frame_pools} is out of range: each must be 1 to {MOST_FRAMES}"
            )
        self.widths = list(cfg.widths) or [cfg.width]  # checked by check_widths
        self.depths: list[int] = []
        self.default = Speed(cfg.downsample_factor, cfg.frame_pool, 0, cfg.width)  # set_depths

    def set_depths(self, cfg, num_layers: int, num_all: int) -> None:
        """
        Args:
            num_layers: that the model keeps
            num_all: that the pretrained model has
        """
        depths = list(cfg.depths)
        if depths and (len(set(depths)) < len(depths) or min(depths) < 1):
            raise ValueError(f"depths={depths}: each must be 1 or more and named once")
        if depths and max(depths) > num_all:
            raise ValueError(
                f"depths={depths}: the model has {num_all} layers, and depths count them"
            )
        if depths and num_layers not in depths:
            raise ValueError(
                f"depths={depths} does not hold {num_layers}, the layers that the model keeps and "
                "runs in evaluation: add it, or set keep_layers to one of them"
            )
        # of a trained model fewer layers may be kept: those depths are what is left of it
        self.depths = [depth for depth in depths if depth <= num_layers] or [num_layers]
        self.default = Speed(cfg.downsample_factor, cfg.frame_pool, num_layers, cfg.width)

    @property
    def many(self) -> bool:
        return max(map(len, self._choices)) > 1

    @property
    def _choices(self) -> tuple[list, ...]:
        return self.factors, self.frame_pools, self.depths, self.widths

    def drawn(self, num_updates: int) -> Speed:
        """The speed of an update: uniform, independent, and the same on every worker and in a
        resumed run."""
        dice = random.Random(f"speed of update {num_updates}")
        return Speed(*map(dice.choice, self._choices))

    @property
    def whole(self) -> Speed:
        """The slowest."""
        return Speed(min(self.factors), min(self.frame_pools), max(self.depths), max(self.widths))

    @property
    def fastest(self) -> Speed:
        return Speed(max(self.factors), max(self.frame_pools), min(self.depths), min(self.widths))

    @property
    def reduced(self) -> list[Speed]:
        """All but the whole model."""
        every = itertools.product(*self._choices)
        return [speed for speed in itertools.starmap(Speed, every) if speed != self.whole]

    def drawn_reduced(self, num_updates: int, count: int, with_fastest: bool) -> list[Speed]:
        """``count`` different ones of the reduced for an update, the same wherever it is drawn, as
        :meth:`drawn`; with the fastest before them, which then is not drawn."""
        always = [self.fastest] if with_fastest else []
        others = [speed for speed in self.reduced if speed not in always]
        dice = random.Random(f"reduced speeds of update {num_updates}")
        return [*always, *dice.sample(others, count)]

    def name_of(self, speed: Speed) -> str:
        """``factor_2``, ``pool_3_depth_8``: what the model has a choice of."""
        parts = [
            ("factor", self.factors, speed.factor),
            ("pool", self.frame_pools, speed.frame_pool),
            ("depth", self.depths, speed.depth),
            ("width", self.widths, speed.width),
        ]
        return "_".join(f"{name}_{each:g}" for name, choices, each in parts if len(choices) > 1)


def _choices(cfg, option: str, single: str, least) -> list:
    choices, default = list(getattr(cfg, option)), getattr(cfg, single)
    if not choices:
        return [default]
    if len(set(choices)) < len(choices) or min(choices) < least:
        raise ValueError(f"{option}={choices}: each must be {least} or more and named once")
    if default not in choices:
        raise ValueError(
            f"{single}={default} is not among {option}={choices}: evaluation uses one of those "
            "that are trained"
        )
    return choices
