"""Length formulas of whole models, ours and stock ``wav2vec_ctc``."""

from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Model

from fairseq_speedup.lengths import conv_stack_length, needed_conv_stack_length
from fairseq_speedup.models.speedup_ctc import SpeedupEncoder, conv_layers_of


class StockLengths:
    """Lengths of fairseq's own ``wav2vec_ctc``."""

    def __init__(self, w2v_model: Wav2Vec2Model):
        self.conv_layers = conv_layers_of(w2v_model)

    def output_lengths(self, num_samples):
        return conv_stack_length(num_samples, self.conv_layers)

    def needed_samples(self) -> int:
        return needed_conv_stack_length(1, self.conv_layers)


def model_lengths(model):
    """An object with ``output_lengths(num_samples)``, in logit frames, and ``needed_samples()``;
    None for a model whose lengths are not known here."""
    encoder = getattr(model, "w2v_encoder", None)
    if isinstance(encoder, SpeedupEncoder):
        return encoder
    w2v_model = getattr(encoder, "w2v_model", None)
    return StockLengths(w2v_model) if isinstance(w2v_model, Wav2Vec2Model) else None
