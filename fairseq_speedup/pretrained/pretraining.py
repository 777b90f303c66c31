"""Reads the checkpoints of pretraining and of distillation, in every form."""

from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.pretrained.dphubert import is_dphubert, read_dphubert
from fairseq_speedup.pretrained.families import (
    RELATIVE_BIAS,
    Pretrained,
    as_wav2vec2,
    begin_masks,
    family_of,
    rebuilt_config,
    sort_weights,
)
from fairseq_speedup.pretrained.starhubert import is_starhubert, read_starhubert
from fairseq_speedup.pretrained.students import StudentSizes, student_config

# A DistilHuBERT config's fields: name in s3prl -> name in fairseq, where it is another.
S3PRL_FIELDS = {"extractor_conv_feature_layers": "conv_feature_layers"}


def read_pretraining(path: str, state: dict) -> Pretrained:
    """The encoder in what was loaded from a file that is not fine-tuned.

    Raises:
        CheckpointError: of no family that is known
    """
    form = form_of(state)
    if form is not None:
        return form.read(path, state)
    cfg, weights = config_of(path, state), weights_of(path, state)
    model_cfg = cfg.get("model") or {}
    if model_cfg.get("_name") == "distilled_student":
        return _student(path, cfg, weights)
    return family_of(path, model_cfg, cfg.get("task"), weights)


def weights_of(path: str, state: dict) -> dict:
    """Raises CheckpointError where there are none."""
    weights = state.get("model")
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path} holds no model weights")
    return weights


def config_of(path: str, state: dict) -> DictConfig:
    """Its sections ``model`` and ``task``, whatever the era.

    Raises:
        CheckpointError: neither a config nor arguments
    """
    cfg = state.get("cfg")
    if cfg is None:
        if state.get("args") is None:
            raise CheckpointError(f"{path} holds neither a cfg nor args")
        cfg = _pretraining_of_namespace(path, state["args"])
    if isinstance(cfg, dict):
        cfg = {name: cfg[name] for name in ("model", "task") if name in cfg}
    return OmegaConf.create(cfg, flags={"allow_objects": True})  # a Namespace may be inside


def _pretraining_of_namespace(path: str, args) -> dict:
    """The config of a checkpoint of fairseq before 1.0: one flat Namespace."""
    given = dict(vars(args))
    kind = given.get("arch")
    return {
        "model": {**given, "_name": kind},
        "task": {"_name": given.get("task"), "normalize": given.get("normalize", False)},
    }


def _has_flat_config(state: dict) -> bool:
    cfg = state.get("cfg")
    return isinstance(cfg, dict) and "model" not in cfg and "encoder_layers" in cfg


def _wavlm(path: str, state: dict) -> Pretrained:
    """Weights under wav2vec 2.0's names."""
    given, weights = state["cfg"], weights_of(path, state)
    if RELATIVE_BIAS not in weights:
        given = {**given, "relative_position_embedding": False}
    cfg = as_wav2vec2(path, "wavlm", given, given.get("normalize", False))
    return Pretrained("wavlm", cfg, *sort_weights(path, "wavlm", weights))


def _student(path: str, cfg, weights: dict) -> Pretrained:
    """A student of ours has its teacher's config, and sizes of its own.

    Raises:
        CheckpointError: sizes that mean nothing
    """
    teacher = rebuilt_config(path, cfg.model.w2v_args)
    try:
        pretraining = student_config(teacher, StudentSizes.of(cfg.model), "its teacher")
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    prefix = "student."
    weights = {
        name[len(prefix) :] if name.startswith(prefix) else name: weight
        for name, weight in weights.items()
    }
    kept, dropped = sort_weights(path, "distilled_student", weights)
    return Pretrained("distilled_student", pretraining, kept, dropped)


def _distilhubert(path: str, state: dict) -> Pretrained:
    """
    Raises:
        CheckpointError: a config that is missing, or weights that no DistilHuBERT has
    """
    weights, config = state["Distiller"], state.get("Config")
    given = config.get("distiller") if isinstance(config, dict) else None
    if not isinstance(given, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"{path}: its Config has no 'distiller' section")
    options = {S3PRL_FIELDS.get(name, name): value for name, value in given.items()}
    options.setdefault("encoder_layers", 1)  # s3prl's default; its others are fairseq's
    if options["encoder_layers"] < 1:
        raise CheckpointError(f"{path}: a student without transformer layers")
    cfg = as_wav2vec2(path, "distilhubert", options, normalize=False)
    kept, dropped = sort_weights(path, "distilhubert", weights)
    begin_masks(kept, cfg)
    return Pretrained("distilhubert", cfg, kept, dropped)


@dataclass(frozen=True)
class Form:
    """A file that is not fairseq's.

    name: whose it is, and where its config is
    is_of: whether what was loaded from a file is of this form
    read: gives the encoder, of the file's path and what was loaded from it
    weights: where they are in what was loaded
    """

    name: str
    is_of: Callable[[dict], bool]
    read: Callable[[str, dict], Pretrained]
    weights: str = "model"


FORMS = [
    Form("s3prl: Config", lambda state: "Distiller" in state, _distilhubert, "Distiller"),
    Form("Microsoft: cfg, one flat dict", _has_flat_config, _wavlm),
    Form("DPHuBERT's authors: config", is_dphubert, read_dphubert, "state_dict"),
    Form("STaRHuBERT's authors: YAML beside", is_starhubert, read_starhubert, "state_dict"),
]


def form_of(state: dict) -> Form | None:
    """The form of what was loaded from a file, None of fairseq's own."""
    return next((form for form in FORMS if form.is_of(state)), None)
