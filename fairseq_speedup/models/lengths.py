"""Length formulas of whole models, ours and stock ``wav2vec_ctc``."""

from typing import Any

import numpy as np
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Model

from fairseq_speedup.frames import FrameReduction
from fairseq_speedup.frontend import CnnFrontEnd
from fairseq_speedup.lengths import FrameGrid
from fairseq_speedup.speeds import Speeds
from fairseq_speedup.transformer.stage import LayerStage


class PathLengths:
    """Lengths along the data path, of a model that has these stages on it."""

    waveform_reduction: Any
    front_end: Any
    frame_reduction: FrameReduction
    kept_layers: list[int]
    stages: list[LayerStage]
    logit_upsample: int
    speeds: Speeds

    def logits_per_frame(self) -> int:
        """Logit frames of one frame of the transformer, at the speed that is chosen."""
        return self.frame_reduction.factor * self.logit_upsample

    def frame_lengths(self, num_samples):
        """Frames of the front-end for utterances of ``num_samples``."""
        return self.front_end.output_lengths(self.waveform_reduction.output_lengths(num_samples))

    def output_lengths(self, num_samples):
        """Logit frames of utterances of ``num_samples`` (int, numpy array or tensor)."""
        return self.frame_lengths(num_samples) * self.logit_upsample

    def frame_grid(self) -> FrameGrid:
        """Where the logit frames lie in the waveform, at the speed that is chosen."""
        return self.front_end_grid().split(self.logit_upsample)

    def front_end_grid(self) -> FrameGrid:
        """Where the front-end's frames lie."""
        return self.front_end.frame_grid(self.waveform_reduction.frame_grid(FrameGrid()))

    def ctc_lengths(self, num_samples, any_speed: bool = True):
        """Logit frames that CTC can give labels of their own: frames that have merged are copies of
        each other. What depends on what the frames hold is left out.

        Args:
            any_speed: at the fastest speed that is trained; else at the one that is chosen
        """
        reduction, pooling = self.waveform_reduction, self.frame_reduction
        shortened, fewest, most = reduction.output_lengths, pooling.output_lengths, pooling.factor
        if any_speed:
            shortened, fewest = reduction.fewest, pooling.fewest
            most = max(self.speeds.frame_pools)
        frames = self.front_end.output_lengths(shortened(num_samples))
        pooled = fewest(frames)
        stages = [stage for stage in self.stages if stage.known_lengths]
        for index in self.kept_layers:
            for stage in stages:
                pooled = stage.lengths_after(index, pooled)
        if stages:
            frames = np.minimum(frames, pooled * most)
        return frames * self.logit_upsample

    def needed_samples(self, any_speed: bool = False) -> int:
        """The shortest waveform, in samples, that gives one frame.

        Args:
            any_speed: at every speed that is trained; else at the one that is chosen
        """
        needed = self.front_end.needed_samples(1)
        if any_speed:
            return self.waveform_reduction.most_needed(needed)
        return self.waveform_reduction.needed_samples(needed)


class StockLengths:
    """Lengths of fairseq's own ``wav2vec_ctc``."""

    logit_upsample = 1

    def __init__(self, w2v_model: Wav2Vec2Model):
        self.front_end = CnnFrontEnd(w2v_model.feature_extractor)

    def output_lengths(self, num_samples):
        return self.front_end.output_lengths(num_samples)

    def ctc_lengths(self, num_samples, any_speed: bool = True):
        return self.output_lengths(num_samples)

    def frame_grid(self) -> FrameGrid:
        return self.front_end.frame_grid(FrameGrid())

    def needed_samples(self, any_speed: bool = False) -> int:
        return self.front_end.needed_samples(1)


def model_lengths(model):
    """An object with ``output_lengths(num_samples)`` and ``ctc_lengths(num_samples)``, in logit
    frames, ``frame_grid()``, ``logit_upsample`` and ``needed_samples()``, as PathLengths has
    them; None for a model whose lengths are not known here."""
    encoder = getattr(model, "w2v_encoder", None)
    if isinstance(encoder, PathLengths):
        return encoder
    w2v_model = getattr(encoder, "w2v_model", None)
    return StockLengths(w2v_model) if isinstance(w2v_model, Wav2Vec2Model) else None
