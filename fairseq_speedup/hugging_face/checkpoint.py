"""Checkpoints out of encoders: in the form of the family's authors, or fine-tuned with CTC."""

from fairseq.models.hubert.hubert import HubertConfig
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from omegaconf import OmegaConf

from fairseq_speedup.checkpoints.opening import defaults_of, state_without_training, whole_config
from fairseq_speedup.config import SpeedupCtcConfig
from fairseq_speedup.data.dictionary import dictionary_of
from fairseq_speedup.pretrained.families import RELATIVE_BIAS, Pretrained
from fairseq_speedup.pretrained.finetuned import ENCODER, HEAD
from fairseq_speedup.pretrained.pretraining import S3PRL_FIELDS
from fairseq_speedup.tasks.speedup_finetuning import SpeedupFinetuningConfig


def checkpoint_of(pretrained: Pretrained) -> dict:
    """What ``torch.save`` is given for an encoder, or for a CTC model where it has a head."""
    if pretrained.head:
        return _finetuned(pretrained)
    return PRETRAINED_FORMS.get(pretrained.family, _fairseq)(pretrained)


def _fairseq(pretrained: Pretrained) -> dict:
    sections = OmegaConf.to_container(pretrained.cfg)
    cfg = whole_config(sections["model"] | {"_name": pretrained.family}, sections["task"])
    return state_without_training(pretrained.weights, cfg=cfg)


def _hubert(pretrained: Pretrained) -> dict:
    """Its clusters are not known, nor needed."""
    state = _fairseq(pretrained)
    cfg, ours = state["cfg"], set(HubertConfig.__dataclass_fields__)
    cfg["model"] = defaults_of(HubertConfig) | {k: v for k, v in cfg["model"].items() if k in ours}
    normalize = cfg["task"]["normalize"]
    task = HubertPretrainingConfig(data="", normalize=normalize, label_rate=50.0)
    cfg["task"] = vars(task) | {"_name": "hubert_pretraining"}
    cfg["model"]["label_rate"] = task.label_rate
    return state | {"task_state": {"dictionaries": [None]}}


def _wavlm(pretrained: Pretrained) -> dict:
    """Microsoft's form: a flat config, the bias table in the first layer."""
    cfg = OmegaConf.to_container(pretrained.cfg)
    positions = cfg["encoder_variant"]["relative_positions"]
    options = {
        **cfg["model"],
        "normalize": cfg["task"]["normalize"],
        "relative_position_embedding": True,
        "num_buckets": positions["num_buckets"],
        "max_distance": positions["max_distance"],
        "gru_rel_pos": positions["gated"],
    }
    weights = dict(pretrained.weights)
    weights[RELATIVE_BIAS] = weights.pop("encoder.relative_attention_bias.weight")
    return {"cfg": options, "model": weights}


def _distilhubert(pretrained: Pretrained) -> dict:
    """s3prl's form."""
    options = OmegaConf.to_container(pretrained.cfg.model)
    for theirs, ours in S3PRL_FIELDS.items():
        options[theirs] = options.pop(ours)
    return {"Config": {"distiller": options}, "Distiller": pretrained.weights, "Step": 0}


PRETRAINED_FORMS = {"hubert": _hubert, "wavlm": _wavlm, "distilhubert": _distilhubert}


def _finetuned(pretrained: Pretrained) -> dict:
    """fairseq's ``wav2vec_ctc``, or ``speedup_ctc`` where the encoder has what fairseq's lacks."""
    ours = set(pretrained.cfg.encoder_variant) - {"family"}
    model, task = Wav2Vec2CtcConfig, AudioFinetuningConfig
    names = {"model": "wav2vec_ctc", "task": "audio_finetuning"}
    if ours:
        model, task = SpeedupCtcConfig, SpeedupFinetuningConfig
        names = {"model": "speedup_ctc", "task": "speedup_finetuning"}
    normalize = pretrained.cfg.task.normalize
    cfg = whole_config(
        defaults_of(model)
        | {"_name": names["model"], "w2v_path": ""}
        | ({"padding": "stock"} if ours else {}),
        defaults_of(task)
        | {"_name": names["task"], "data": "", "labels": "ltr", "normalize": normalize},
    )
    cfg["model"]["w2v_args"] = OmegaConf.to_container(pretrained.cfg)
    weights = {ENCODER + name: weight for name, weight in pretrained.weights.items()}
    weights |= {HEAD + name: weight for name, weight in pretrained.head.items()}
    task_state = {"target_dictionary": dictionary_of(pretrained.labels or [])}
    return state_without_training(weights, cfg=cfg, task_state=task_state)
