"""``speedup_ctc``: fairseq's wav2vec 2.0 CTC model with reductions."""

import logging

from fairseq.models import register_model
from fairseq.models.wav2vec.wav2vec2_asr import Wav2VecCtc

from fairseq_speedup.models.config import SpeedupCtcConfig
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.transformer.layer_removal import KeptLayers, drop_removed_layers

logger = logging.getLogger(__name__)


@register_model("speedup_ctc", dataclass=SpeedupCtcConfig)
class SpeedupCtc(Wav2VecCtc):
    """wav2vec 2.0 fine-tuned with CTC, made faster by the reductions its config names.

    With every reduction off it is fairseq's ``wav2vec_ctc``, number for number.
    """

    @classmethod
    def build_model(cls, cfg: SpeedupCtcConfig, task):
        return cls(cfg, SpeedupEncoder(cfg, len(task.target_dictionary)))

    def upgrade_state_dict_named(self, state_dict, name):
        """Fits a checkpoint to this model's layers and exits: layers and exit heads that the model
        lacks are left out, an exit head that the checkpoint lacks starts as its last head."""
        if isinstance(self.w2v_encoder.w2v_model.encoder.layers, KeptLayers):
            prefix = "w2v_encoder.w2v_model.encoder.layers."
            drop_removed_layers(state_dict, prefix, self.w2v_encoder.kept_layers)
        fit_exit_heads(state_dict, getattr(self.w2v_encoder, "exit_heads", {}))
        return super().upgrade_state_dict_named(state_dict, name)


def fit_exit_heads(state_dict: dict, exit_heads) -> None:
    """See :meth:`SpeedupCtc.upgrade_state_dict_named`; works in place."""
    prefix, last = "w2v_encoder.exit_heads.", "w2v_encoder.proj."
    for key in [key for key in state_dict if key.startswith(prefix)]:
        if key[len(prefix) :].split(".")[0] not in exit_heads:
            del state_dict[key]
    for index in exit_heads:
        if not any(key.startswith(f"{prefix}{index}.") for key in state_dict):
            logger.warning("the checkpoint has no head for exit %s: it starts as the last", index)
            for key in [key for key in state_dict if key.startswith(last)]:
                state_dict[f"{prefix}{index}.{key[len(last) :]}"] = state_dict[key].clone()
