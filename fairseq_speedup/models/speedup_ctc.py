"""``speedup_ctc``: fairseq's wav2vec 2.0 CTC model with reductions."""

from fairseq.models import register_model
from fairseq.models.wav2vec.wav2vec2_asr import Wav2VecCtc

from fairseq_speedup.config import SpeedupCtcConfig
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.models.start import load_whole
from fairseq_speedup.models.state_fitting import fit_state


@register_model("speedup_ctc", dataclass=SpeedupCtcConfig)
class SpeedupCtc(Wav2VecCtc):
    """wav2vec 2.0 fine-tuned with CTC, made faster by the reductions its config names.

    With every reduction off it is fairseq's ``wav2vec_ctc``, number for number.
    """

    @classmethod
    def build_model(cls, cfg: SpeedupCtcConfig, task):
        labels = task.target_dictionary.symbols
        encoder = SpeedupEncoder(cfg, labels)
        model = cls(cfg, encoder)
        if encoder.reduced_start is not None:
            load_whole(model, encoder.reduced_start, labels)
            encoder.reduced_start = None
        return model

    def upgrade_state_dict_named(self, state_dict, name):
        """Fits a checkpoint to this model's reductions, see :func:`fit_state`."""
        fit_state(state_dict, self)
        return super().upgrade_state_dict_named(state_dict, name)
