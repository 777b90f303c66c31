"""Encoders of the public sizes with random weights: to profile and to test without a checkpoint."""

import functools
from typing import TYPE_CHECKING

from fairseq_speedup.registry import Registry

if TYPE_CHECKING:  # help names the sizes, and waits for neither fairseq nor OmegaConf
    from omegaconf import DictConfig

ARCHITECTURES = Registry("arch")

# wav2vec 2.0 base: 12 layers, group-norm front-end
ARCHITECTURES["base"] = {"quantize_targets": True, "final_dim": 256}
# wav2vec 2.0 large (LV-60), XLSR, WavLM large: 24 layers, layer-norm front-end
ARCHITECTURES["large"] = {
    "extractor_mode": "layer_norm",
    "conv_bias": True,
    "layer_norm_first": True,
    "encoder_layers": 24,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
    "quantize_targets": True,
    "final_dim": 768,
}
# wav2vec 2.0 Conformer, with relative or rotary positions
for _name, _positions in [("conformer_rel_pos", "rel_pos"), ("conformer_rope", "rope")]:
    ARCHITECTURES[_name] = ARCHITECTURES["large"] | {
        "layer_type": "conformer",
        "attn_type": "espnet",
        "pos_enc_type": _positions,
    }


def pretraining_config(normalize: bool, **model_options) -> "DictConfig":
    """The sections ``model`` and ``task`` of a wav2vec 2.0 checkpoint's config, which are what
    ``w2v_args`` of a fine-tuned one is built by.

    Args:
        normalize: whether waveforms are normalised
        model_options: fields of fairseq's ``Wav2Vec2Config``
    """
    from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
    from omegaconf import OmegaConf

    model = OmegaConf.structured(Wav2Vec2Config(**model_options))
    return OmegaConf.create(
        {
            "model": OmegaConf.to_container(model, enum_to_str=True) | {"_name": "wav2vec2"},
            "task": _task() | {"normalize": normalize},
        }
    )


@functools.cache
def _task() -> dict:
    """The section of pretraining's task as a checkpoint has it, without ${common.seed}."""
    from fairseq.dataclass.configs import CommonConfig
    from fairseq.tasks.audio_pretraining import AudioPretrainingConfig
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"common": CommonConfig(), "task": AudioPretrainingConfig()})
    task = OmegaConf.to_container(cfg, enum_to_str=True, resolve=True)["task"]
    return task | {"_name": "audio_pretraining"}


def architecture_config(arch: str) -> "DictConfig":
    """The pretraining config of a public size."""
    return pretraining_config(normalize=arch != "base", **ARCHITECTURES.lookup(arch))
