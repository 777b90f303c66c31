"""Frame dropping: after some layers, frames that are of no more use go no further.

Which they are, a registered function says of what the frames hold; ``blank`` is that of CTC: an
exit head in the middle of the stack calls them blank (arXiv 2310.14954, 2401.02046). The first
frame of an utterance stays, and what is dropped comes back before the last head as a copy of the
frame before it that stayed, so that lengths, timestamps and logits are those of all frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass

from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.registry import Registry
from fairseq_speedup.transformer.early_exit import ExitOptionError, parse_exit_layers
from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.layer_removal import numbers, parse_indices
from fairseq_speedup.transformer.layers import check_layers
from fairseq_speedup.transformer.reused_attention import check_own_maps
from fairseq_speedup.transformer.stage import LayerStage, frames_by_layer

FRAME_DROPS = Registry("drop_frames")
BLANK = 0  # index of CTC's blank label, as fairseq's Wav2VecCtc has it


@dataclass
class FrameDroppingConfig(FairseqDataclass):
    drop_frames: str = field(
        default="none",
        metadata={
            "help": "frames that go no further after drop_layers: none, or blank, those that the "
            "exit there calls blank with a probability above drop_threshold, except beside others "
            "and between equal labels"
        },
    )
    drop_layers: str = field(
        default="exits",
        metadata={
            "help": "layers after which frames are dropped: exits (every layer with an exit) or a "
            "list of indices, such as '5,8'"
        },
    )
    drop_threshold: float = field(
        default=0.9, metadata={"help": "threshold of drop_frames; see there"}
    )


def check_dropping(cfg: FrameDroppingConfig) -> None:
    """Raises ValueError for options out of range, or that mean nothing together."""
    FRAME_DROPS.lookup(cfg.drop_frames)
    if cfg.drop_threshold != cfg.drop_threshold:
        raise ValueError("drop_threshold is NaN; it must be a number")
    off = FrameDroppingConfig()
    for name in ("drop_layers", "drop_threshold"):
        if cfg.drop_frames == "none" and getattr(cfg, name) != getattr(off, name):
            raise ValueError(
                f"{name}={getattr(cfg, name)} needs drop_frames, which says what frames are "
                "dropped: set it, for example to 'blank'"
            )
    if cfg.drop_frames == "blank" and not 0 < cfg.drop_threshold < 1:
        raise ValueError(
            f"drop_threshold={cfg.drop_threshold} is out of range: with drop_frames=blank it is a "
            "probability, between 0 and 1"
        )


def parse_drop_layers(cfg, kept: list[int], exits: list[int]) -> list[int]:
    """Indices of the layers after which frames are dropped.

    Args:
        cfg: a SpeedupCtcConfig
        kept: indices of the model's layers
        exits: of those with an exit
    Raises:
        ValueError: no list of layers, or a layer that is removed, the last, or without the exit
            that it needs
    """
    if cfg.drop_layers == "exits":
        layers = exits
    else:
        layers = parse_indices("drop_layers", cfg.drop_layers, "'exits'")
        if cfg.depths:
            layers = [index for index in layers if index < kept[-1]]
    for index in layers:
        if index not in kept[:-1]:
            raise ValueError(
                f"drop_layers={cfg.drop_layers}: frames cannot be dropped after layer {index}; "
                f"with its keep_layers the model allows {', '.join(map(str, kept[:-1])) or 'none'} "
                "(not the last, after which it saves nothing)"
            )
        if FRAME_DROPS[cfg.drop_frames].needs_exit and index not in exits:
            raise ExitOptionError(
                f"drop_frames={cfg.drop_frames} after layer {index} needs an exit there: add it to "
                "exit_layers"
            )
    if not layers and not cfg.depths:
        raise ExitOptionError(
            f"drop_frames={cfg.drop_frames} with drop_layers={cfg.drop_layers} drops nothing: the "
            "model has no exits. Set exit_layers, for example to 'upper', or name drop_layers"
        )
    return layers


@dataclass(frozen=True)
class FrameDrop:
    """What says which frames are dropped.

    Attributes:
        choose: called with the keywords ``hidden`` (T', A, C) after the layer, ``given``
            (T', A, C) before it, ``padding_mask`` (T', A), True at padding, ``threshold``, and
            ``log_probs`` (T, A, V) of the exit there with the index ``blank``, or None; returns a
            mask (T', A), or (T, A) where it needs the exit, True for frames that are dropped
        needs_exit: whether it is given ``log_probs``, which are of the frames before any was
            dropped or merged
    """

    choose: Callable[..., torch.Tensor]
    needs_exit: bool = False


def blank_frames(*, log_probs, blank: int, threshold: float, **unused) -> torch.Tensor:
    """Frames (T, A) that are blank with a probability above ``threshold``, and so are both beside
    them: of a run of blanks its ends stay, so that equal labels stay apart."""
    is_blank = log_probs[:, :, blank].exp() > threshold
    # a neighbour beyond the utterance's ends counts as blank
    edge = torch.ones_like(is_blank[:1])
    before, after = torch.cat([edge, is_blank[:-1]]), torch.cat([is_blank[1:], edge])
    return is_blank & before & after


FRAME_DROPS["none"] = None
FRAME_DROPS["blank"] = FrameDrop(blank_frames, needs_exit=True)


class FrameDropping(LayerStage):
    """Takes frames out of the batch after some layers.

    Args:
        layers: indices of the layers after which frames are dropped
        indices: of the model's layers, in the model before layers were removed
        head: see EarlyExit
        logits_per_frame: gives how many logits there are of a frame of the transformer
        cfg: what is dropped, and the threshold
    """

    options = FrameDroppingConfig
    check = staticmethod(check_dropping)

    @property
    def known_lengths(self) -> bool:
        return False

    @classmethod
    def build(cls, cfg, encoder) -> "FrameDropping | None":
        if cfg.drop_frames == "none":
            return None
        check_layers(encoder.w2v_model.encoder.layers, "drop_frames=none")
        check_own_maps(
            encoder.w2v_model.encoder.layers, f"drop_frames={cfg.drop_frames}", "drop_frames=none"
        )
        kept = encoder.kept_layers
        exits = parse_exit_layers(cfg.exit_layers, kept, cfg.depths)
        layers = parse_drop_layers(cfg, kept, exits)
        head = partial(encoder.exit_logits, with_dropout=False)  # what goes is no matter of chance
        return cls(layers, kept, head, encoder.logits_per_frame, cfg)

    def __init__(self, layers: list[int], indices: list[int], head, logits_per_frame, cfg):
        self.layers = layers
        self.indices = indices
        self.head = head
        self.logits_per_frame = logits_per_frame
        self.drop = FRAME_DROPS.lookup(cfg.drop_frames)
        self.threshold = cfg.drop_threshold

    def after(self, index: int, batch: FrameBatch) -> None:
        """See LayerStage."""
        if index not in self.layers or batch.is_last:
            return
        num_frames = batch.hidden.size(0)
        padding = padding_mask_of(batch.lengths, num_frames).T
        drops = self.drop.choose(
            hidden=batch.hidden,
            given=batch.given,
            padding_mask=padding,
            threshold=self.threshold,
            log_probs=self._log_probs(index, batch) if self.drop.needs_exit else None,
            blank=BLANK,
        )
        if self.drop.needs_exit:  # of the frames of the beginning: one is dropped if all of it is
            drops = ~batch.any_of(~drops)
        first = torch.arange(num_frames, device=drops.device)[:, None] == 0
        batch.drop(drops & ~padding & ~first)

    @torch.no_grad()
    def _log_probs(self, index: int, batch: FrameBatch) -> torch.Tensor:
        """Log-probabilities (T, A, V) of the frames that the transformer began with, of the logits
        that pooling and logit upsampling make of one those with the least probable blank; padding
        is blank."""
        frames = batch.unmerged()
        logits, lengths = self.head(index, frames, batch)
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        padding = padding_mask_of(lengths, log_probs.size(0)).T[:, :, None]
        is_blank = torch.arange(log_probs.size(2), device=log_probs.device) == BLANK
        certain = torch.zeros_like(log_probs[:1, :1]).masked_fill(~is_blank, -torch.inf)
        log_probs = torch.where(padding, certain, log_probs)
        ratio = self.logits_per_frame()
        if ratio == 1:
            return log_probs
        missing = frames.size(0) * ratio - log_probs.size(0)
        filler = certain.expand(missing, log_probs.size(1), -1)
        groups = torch.cat([log_probs, filler]).reshape(
            -1, ratio, log_probs.size(1), log_probs.size(2)
        )
        least = groups[..., BLANK].argmin(dim=1)[:, None, :, None]
        return groups.gather(1, least.expand(-1, -1, -1, groups.size(3)))[:, 0]

    def named_layers(self) -> list[int]:
        return self.layers

    def renumber(self, cfg, place) -> None:
        cfg.drop_layers = numbers(place, self.layers)

    def num_heads_run(self, layer_frames: np.ndarray):
        """The exits that were asked for blanks."""
        if not self.drop.needs_exit:
            return 0
        positions = [self.indices.index(index) for index in self.layers]
        return (layer_frames > 0)[:, positions].sum(axis=1)

    def report(self, layer_frames: np.ndarray) -> dict:
        return frames_by_layer(layer_frames.sum(axis=0))

    def exportable(self) -> "FrameDropping":
        return self
