"""What may happen between two layers: the interface of a stage.

A stage is one file: its options, the stage, and a line in ``stages.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # reports are read without torch
    from fairseq_speedup.transformer.frame_batch import FrameBatch


class LayerStage:
    """A reduction between the transformer's layers. It answers for itself: which options it has,
    what it does to a batch, how many frames it leaves, what it adds to the compute, what a report
    says of it, and how it is exported. The methods here are those of a stage that changes nothing.

    Attributes:
        options: dataclass of the model options that it is built by
        ends_early: whether utterances may leave before the last layer
    """

    options: type
    ends_early = False

    @property
    def known_lengths(self) -> bool:
        """Whether the frames that it leaves follow from their number alone."""
        return True

    @property
    def known_heads(self) -> bool:
        """Whether the heads that it asks follow from its options and the number of frames."""
        return True

    @classmethod
    def check(cls, cfg) -> None:
        """Raises ValueError for options that are wrong whatever the pretrained model."""

    @classmethod
    def build(cls, cfg, encoder) -> LayerStage | None:
        """The stage of a model, or None where the options switch it off.

        Args:
            cfg: a SpeedupCtcConfig
            encoder: a SpeedupEncoder whose layers are chosen and whose heads can be built
        Raises:
            ValueError: options that this model cannot have
        """
        raise NotImplementedError

    def after(self, index: int, batch: FrameBatch) -> None:
        """Called when the layer ``index`` of the unreduced model has run; changes the batch by its
        methods."""

    def lengths_after(self, index: int, lengths):
        """Frames left of ``lengths`` after layer ``index``, the fewest where that depends on what
        they hold (int, numpy array or tensor)."""
        return lengths

    def leaves_after(self) -> int | None:
        """Index of the layer after which every utterance leaves, where its options alone say so."""
        return None

    def named_layers(self) -> list[int]:
        """Indices of the layers that it does something after, where it needs these and no others:
        none of them can be left out."""
        return []

    def renumber(self, cfg, place: Mapping[int, int]) -> None:
        """Names layers in the options of ``cfg`` by their places, in place: the others are cut out
        of the model for good."""

    def num_heads_run(self, layer_frames: np.ndarray):
        """Heads that an utterance asks beside the last (utterances,), of the frames that each layer
        was given (utterances, layers)."""
        return 0

    def report(self, layer_frames: np.ndarray) -> Mapping:
        """What ``compute.json`` says of it, of frames (utterances, layers) of a whole data set."""
        return {}

    def exportable(self) -> LayerStage | None:
        """The stage in a form that can be traced, for a batch that is traced; None where nothing
        of it is left in a graph.

        Raises:
            ValueError: utterances take different ways through it, which a graph cannot
        """
        raise ValueError(f"{type(self).__name__} cannot be exported")


def frames_by_layer(frames: np.ndarray) -> dict:
    """What ``compute.json`` says of frames (layers,) that each layer was given, of a data set."""
    shares = [round(float(share), 4) for share in frames / frames[0]]
    return {"share_of_frames_by_layer": shares, "frames_by_layer": frames.tolist()}
