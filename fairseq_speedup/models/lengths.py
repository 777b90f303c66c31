"""Length formulas of whole models, ours and stock ``wav2vec_ctc``."""

from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Model

from fairseq_speedup.frontend import CnnFrontEnd
from fairseq_speedup.lengths import FrameGrid
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder


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
    frames, ``frame_grid()``, ``logit_upsample`` and ``needed_samples()``, as SpeedupEncoder has
    them; None for a model whose lengths are not known here."""
    encoder = getattr(model, "w2v_encoder", None)
    if isinstance(encoder, SpeedupEncoder):
        return encoder
    w2v_model = getattr(encoder, "w2v_model", None)
    return StockLengths(w2v_model) if isinstance(w2v_model, Wav2Vec2Model) else None
