"""The options of structured pruning."""

import math
from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass

PARTS = ("channels", "heads", "units")


@dataclass
class PruningConfig(FairseqDataclass):
    prune_target: float = field(
        default=1.0,
        metadata={
            "help": "learn which parts of the encoder to leave out, down to this share of the "
            "model's MACs, above 0 and below 1; 1 is off. criterion._name=ctc_pruning (or "
            "ctc_exits, ctc_distillation) trains them, `fairseq_speedup prune` then cuts. An "
            "update costs a few percent more than without"
        },
    )
    prune_parts: str = field(
        default=",".join(PARTS),
        metadata={
            "help": "what may be left out: channels of the CNN, attention heads, units of the "
            "feed-forward layers, with commas between"
        },
    )
    prune_length_seconds: float = field(
        default=10.0,
        metadata={"help": "of an utterance, at which prune_target counts MACs"},
    )
    prune_warmup_updates: int = field(
        default=5000,
        metadata={
            "help": "updates in which the target falls from 1 to prune_target, after those of "
            "freeze_finetune_updates and frontend_match_updates"
        },
    )
    prune_lr_scale: float = field(
        default=200.0,
        metadata={
            "help": "gates and the multipliers of the target learn with so many times "
            "optimization.lr; DPHuBERT's are 0.02 and 100 times the weights'"
        },
    )


def parse_parts(prune_parts: str) -> list[str]:
    """The parts that ``prune_parts`` names.

    Raises:
        ValueError: an unknown one, or none
    """
    parts = [part.strip() for part in prune_parts.split(",") if part.strip()]
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(
            f"prune_parts={prune_parts} must name some of {', '.join(PARTS)}, with commas between"
        )
    return parts


def check_pruning(cfg: PruningConfig) -> None:
    """Raises ValueError for options that are wrong whatever the pretrained model."""
    if not 0 < cfg.prune_target <= 1:
        raise ValueError(
            f"prune_target={cfg.prune_target} is out of range: it is a share of the model's MACs, "
            "above 0 and below 1; 1 switches pruning off"
        )
    parse_parts(cfg.prune_parts)
    for option, least in (("prune_length_seconds", 0), ("prune_lr_scale", 0)):
        if not least < getattr(cfg, option) < math.inf:
            raise ValueError(
                f"{option}={getattr(cfg, option)} is out of range: it must be above {least}"
            )
    if cfg.prune_warmup_updates < 0:
        raise ValueError(
            f"prune_warmup_updates={cfg.prune_warmup_updates} is out of range: it must be 0 or more"
        )
    if cfg.prune_target == 1:
        return
    if cfg.exit_heads_only:
        raise ValueError(
            f"prune_target={cfg.prune_target} trains gates of the encoder, which "
            "exit_heads_only=true freezes: prune first, then train the heads"
        )
    if cfg.ddp_backend == "fully_sharded":
        raise ValueError(
            f"prune_target={cfg.prune_target} does not work with "
            "distributed_training.ddp_backend=fully_sharded, which shards the weights that the "
            "gates scale: set it to legacy_ddp or c10d"
        )
