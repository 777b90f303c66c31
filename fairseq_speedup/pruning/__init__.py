"""Structured pruning: gates on CNN channels, attention heads and feed-forward units are learned in
fine-tuning, then what they close is cut out."""

from fairseq_speedup.pruning.config import PruningConfig, check_pruning
from fairseq_speedup.pruning.widths import WidthsConfig, check_widths

__all__ = ["PruningConfig", "WidthsConfig", "check_pruning", "check_widths"]
