"""Token merging: adjacent frames that are alike become one (A-ToMe, arXiv 2306.16009).

After each merging layer the most similar adjacent pairs become their mean, weighted by the frames
that each stands for; frames are paired from the first at one layer and from the second at the
next. The frames are restored, as copies, before the CTC head. It needs no weights and no training.
Positions that are attention's own, and convolutions in the layers, count the frames that are left.
"""

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass

from fairseq_speedup.lengths import merged_length, padding_mask_of
from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.layer_removal import numbers, parse_indices
from fairseq_speedup.transformer.layers import check_layers
from fairseq_speedup.transformer.reused_attention import check_own_maps
from fairseq_speedup.transformer.stage import LayerStage, frames_by_layer

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
        if len(kept) < 2 and not cut:
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


class TokenMerging(LayerStage):
    """Merges frames with their neighbours after some layers.

    Args:
        layers: indices of the layers after which frames merge
        cfg: ratio and threshold
    """

    options = TokenMergingConfig
    check = staticmethod(check_merging)

    @classmethod
    def build(cls, cfg, encoder) -> "TokenMerging | None":
        if cfg.merge_ratio == 0:
            return None
        check_layers(encoder.w2v_model.encoder.layers, "merge_ratio=0")
        check_own_maps(
            encoder.w2v_model.encoder.layers, f"merge_ratio={cfg.merge_ratio}", "merge_ratio=0"
        )
        layers = parse_merge_layers(cfg.merge_layers, encoder.kept_layers, bool(cfg.depths))
        return cls(layers, cfg)

    def __init__(self, layers: list[int], cfg: TokenMergingConfig):
        self.layers = layers
        self.are_named = cfg.merge_layers != "all"
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

    def after(self, index: int, batch: FrameBatch) -> None:
        """See LayerStage."""
        if index not in self.layers or batch.is_last:
            return
        num_merges = batch.lengths - self.lengths_after(index, batch.lengths)
        start = self.start_of(index)
        batch.merge(self.second_of_pairs(batch.hidden, batch.lengths, num_merges, start))

    def named_layers(self) -> list[int]:
        return self.layers if self.are_named else []

    def renumber(self, cfg, place) -> None:
        cfg.merge_layers = numbers(place, self.layers)

    def report(self, layer_frames: np.ndarray) -> dict:
        return frames_by_layer(layer_frames.sum(axis=0))

    def exportable(self) -> "ExportableMerging":
        return ExportableMerging(self)

    def second_of_pairs(self, hidden, lengths, num_merges, start: int):
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


class ExportableMerging(TokenMerging):
    """Without a sort, which ONNX has in no stable form."""

    def __init__(self, merging: TokenMerging):
        self.__dict__.update(merging.__dict__)

    def second_of_pairs(self, hidden, lengths, num_merges, start: int):
        first, second = hidden[start:-1:2], hidden[start + 1 :: 2]
        similarity = F.cosine_similarity(first, second, dim=-1).T  # (A, pairs)
        pair = torch.arange(first.size(0))
        similarity = similarity.masked_fill(
            padding_mask_of((lengths - start) // 2, first.size(0)), -torch.inf
        )
        # the pairs before this one in falling order, the first of those that are equal
        ours, theirs = similarity[:, :, None], similarity[:, None, :]
        before = (theirs > ours) | ((theirs == ours) & (pair[None, :] < pair[:, None]))
        chosen = before.long().sum(dim=2) < num_merges[:, None]
        if not self.known_lengths:
            chosen = chosen & (similarity > self.threshold)
        pairs = torch.stack([torch.zeros_like(chosen), chosen], dim=2).flatten(1).long()
        missing = hidden.size(0) - pairs.size(1) - start
        return F.pad(pairs, (start, missing)).bool().T
