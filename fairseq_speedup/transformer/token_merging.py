"""Token merging: adjacent frames that are alike become one (A-ToMe, arXiv 2306.16009).

After each merging layer the most similar adjacent pairs become their mean, weighted by the frames
that each stands for; frames are paired from the first at one layer and from the second at the
next. The frames are restored, as copies, before the CTC head. It needs no weights and no training.
Positions that are attention's own, and convolutions in the layers, count the frames that are left.
"""

from dataclasses import dataclass, field
from fractions import Fraction

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass

from fairseq_speedup.lengths import merged_length, padding_mask_of
from fairseq_speedup.transformer.layer_removal import parse_indices
from fairseq_speedup.transformer.loop import Passage

MOST = 0.5  # of the frames can merge at once: every pair


@dataclass
class TokenMergingConfig(FairseqDataclass):
    merge_ratio: float = field(
        default=0.0,
        metadata={
            "help": "share of an utterance's frames that merge into their neighbour after each "
            "merging layer, 0 (off) to 0.5"
        },
    )
    merge_threshold: float = field(
        default=-1.0,
        metadata={
            "help": "only pairs merge whose cosine similarity is above this; -1 for all. With "
            "merge_ratio=0.5 it decides alone"
        },
    )
    merge_layers: str = field(
        default="all",
        metadata={
            "help": "layers after which frames merge: all (but the last, where it would save "
            "nothing) or a list of indices, such as '3,5,7'"
        },
    )


def check_merging(cfg: TokenMergingConfig) -> None:
    """Raises ValueError for options out of range, or that mean nothing together."""
    if not 0 <= cfg.merge_ratio <= MOST:
        raise ValueError(f"merge_ratio={cfg.merge_ratio} is out of range; it must be 0 to {MOST}")
    if not -1 <= cfg.merge_threshold <= 1:
        raise ValueError(
            f"merge_threshold={cfg.merge_threshold} is out of range; it is a cosine similarity, "
            "-1 to 1"
        )
    off = TokenMergingConfig()
    for name in ("merge_threshold", "merge_layers"):
        if cfg.merge_ratio == 0 and getattr(cfg, name) != getattr(off, name):
            raise ValueError(
                f"{name}={getattr(cfg, name)} needs merge_ratio, the share of frames that may "
                f"merge after a layer: set it above 0 (at most {MOST})"
            )


def parse_merge_layers(merge_layers: str, kept: list[int], cut: bool = False) -> list[int]:
    """Indices of the layers after which frames merge.

    Args:
        kept: indices of the model's layers
        cut: of a model of many depths, layers beyond those kept are left out
    Raises:
        ValueError: no list of layers, or a layer that is removed or the last
    """
    if merge_layers == "all":
        if len(kept) < 2:
            raise ValueError(
                "merge_ratio needs 2 layers or more, as frames merge between layers; the model "
                f"keeps {len(kept)} (keep_layers)"
            )
        return kept[:-1]
    layers = parse_indices("merge_layers", merge_layers, "'all'")
    if cut:
        layers = [index for index in layers if index < kept[-1]]
    wrong = [index for index in layers if index not in kept[:-1]]
    if wrong:
        raise ValueError(
            f"merge_layers={merge_layers}: frames cannot merge after layer {wrong[0]}; with its "
            f"keep_layers the model allows {', '.join(map(str, kept[:-1])) or 'none'} (not the "
            "last, after which merging saves nothing)"
        )
    return layers


class TokenMerging:
    """
    Args:
        layers: indices of the layers after which frames merge
        cfg: ratio and threshold
    """

    def __init__(self, layers: list[int], cfg: TokenMergingConfig):
        self.layers = layers
        self.ratio = Fraction(str(cfg.merge_ratio))
        self.threshold = cfg.merge_threshold

    @property
    def known_lengths(self) -> bool:
        """Whether lengths follow from the ratio alone, whatever the frames hold."""
        return self.threshold <= -1

    def start_of(self, index: int) -> int:
        """The first frame of the first pair after layer ``index``, 0 or 1."""
        return self.layers.index(index) % 2

    def lengths_after(self, index: int, length):
        """Frames left of ``length`` after layer ``index``; the fewest that may be left, where
        similarity decides (int, numpy array or tensor)."""
        if index not in self.layers:
            return length
        return merged_length(length, self.ratio, self.start_of(index))

    def after(self, index: int, hidden: torch.Tensor, passage: Passage) -> torch.Tensor:
        """See TransformerLoop."""
        if index not in self.layers or index == passage.last or hidden.size(0) < 2:
            return hidden
        num_merges = passage.lengths - self.lengths_after(index, passage.lengths)
        merges = self._second_of_pairs(hidden, passage.lengths, num_merges, self.start_of(index))
        if not merges.any():
            return hidden
        if passage.positions is None:
            frames = torch.arange(passage.num_frames, device=hidden.device)
            passage.positions = frames.expand(hidden.size(1), -1)
            passage.sizes = torch.ones(hidden.shape[:2], device=hidden.device)
        passage.lengths = passage.lengths - merges.sum(dim=0)
        longest = int(passage.lengths.max())
        index_after = (~merges).cumsum(dim=0) - 1  # (T', A): where each frame goes
        hidden, sizes = merge_frames(hidden, passage.sizes, index_after)
        positions = index_after.T.gather(1, passage.positions.clamp(max=index_after.size(0) - 1))
        passage.positions = positions.clamp(max=longest - 1)
        passage.sizes = sizes[:longest]
        return hidden[:longest]

    def _second_of_pairs(self, hidden, lengths, num_merges, start: int):
        """Mask (T', A) of frames that merge into the one before, at most ``num_merges`` (A,)."""
        first, second = hidden[start:-1:2], hidden[start + 1 :: 2]
        similarity = F.cosine_similarity(first.float(), second.float(), dim=-1)
        similarity = similarity.masked_fill(
            padding_mask_of((lengths - start) // 2, len(first)).T, -torch.inf
        )
        best_first = similarity.argsort(dim=0, descending=True, stable=True)
        rank = best_first.argsort(dim=0)
        chosen = (rank < num_merges) & (similarity > self.threshold)
        if self.known_lengths:
            chosen = rank < num_merges
        merges = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        merges[start + 1 :: 2] = chosen
        return merges


def merge_frames(hidden, sizes, index_after):
    """Means of the frames that go to the same index, weighted by their sizes.

    Args:
        hidden: (T', A, C)
        sizes: (T', A)
        index_after: (T', A), where each goes
    Returns:
        hidden and sizes of the same shapes; zero where nothing went
    """
    new_sizes = torch.zeros_like(sizes).scatter_add(0, index_after, sizes)
    index = index_after[:, :, None].expand_as(hidden)
    weighted = hidden.float() * sizes[:, :, None]  # a sum of many frames overflows in half
    total = torch.zeros_like(weighted).scatter_add(0, index, weighted)
    return (total / new_sizes.clamp(min=1)[:, :, None]).to(hidden.dtype), new_sizes
