"""Folders in Hugging Face's form: ``config.json``, weights, and for CTC a processor."""

import logging
import os
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fairseq_speedup.checkpoints.folders import CONFIG
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.console.refusals import reason
from fairseq_speedup.hugging_face.checkpoint import checkpoint_of
from fairseq_speedup.hugging_face.config import (
    FIXED_HERE,
    MODEL_TYPES,
    check_fixed,
    conv_layers_of_config,
    family_of_config,
    wav2vec2_options,
    without_prefix,
)
from fairseq_speedup.hugging_face.labels import Labels, read_json, read_labels
from fairseq_speedup.hugging_face.library import library
from fairseq_speedup.hugging_face.names import HEAD, to_fairseq
from fairseq_speedup.hugging_face.projection import drop_projection
from fairseq_speedup.hugging_face.weights import PRETRAINING_ONLY, read_weights
from fairseq_speedup.pretrained.encoder import build_encoder, check_weights
from fairseq_speedup.pretrained.families import Pretrained, as_wav2vec2
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

logger = logging.getLogger(__name__)

CLASSES = ("Model", "ForPreTraining", "ForCTC")  # ends of the classes that are converted
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
MASK = "masked_spec_embed"


@dataclass
class Folder:
    """What a folder holds.

    Attributes:
        model: transformers', in eval mode
        conv_layers: (dim, kernel_size, stride) of each convolution of its front-end
        pretrained: the same as fairseq's
        labels: of a CTC model, or None
        notes: what was made up, in words
    """

    model: torch.nn.Module
    conv_layers: list[tuple[int, int, int]]
    pretrained: Pretrained
    labels: Labels | None = None
    notes: list[str] = field(default_factory=list)


def read_as_checkpoint(folder: str) -> dict:
    """The checkpoint that ``convert`` would write of a folder.

    Raises:
        FileNotFoundError, CheckpointError: naming the file, and what would be valid
    """
    with torch.random.fork_rng(devices=[]):  # models are made at random, then filled
        found = read_folder(folder)
    for note in found.notes:
        logger.info("%s: %s", folder, note)
    return checkpoint_of(found.pretrained)


def read_folder(folder: str, normalize: bool | None = None) -> Folder:
    """
    Args:
        normalize: whether waveforms are normalised, for a folder that does not say it
    Raises:
        FileNotFoundError, CheckpointError: naming the file, and what would be valid
    """
    config = _read_config(folder)
    weights = read_weights(folder)
    name, ctc = _class_of(folder, config, weights)
    model, dropped, notes = _load(folder, name, config, weights)
    normalize = _normalize(folder, normalize)
    options = model.config.to_dict() | {"model_type": config.model_type}
    family = family_of_config(options)
    encoder, head = _sort(folder, model, options)
    cfg = as_wav2vec2(folder, family, wav2vec2_options(options), normalize)
    with FakeTensorMode():  # shapes alone
        check_weights(build_encoder(cfg), encoder, folder)
    found = Folder(model, conv_layers_of_config(options), Pretrained(family, cfg, encoder, dropped))
    found.notes = notes
    if ctc:
        labels = read_labels(folder, head["bias"].numel(), model.config.pad_token_id)
        found.labels = labels
        found.pretrained.head, found.pretrained.labels = labels.head(**head), labels.symbols
    return found


def load_folder(folder: str):
    """transformers' own model of a folder, in eval mode."""
    transformers = library()
    config = _read_config(folder)
    auto = transformers.AutoModelForCTC if _is_ctc(config) else transformers.AutoModel
    return auto.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()


def _read_config(folder: str):
    """transformers' config, every option at its value or default."""
    path = os.path.join(folder, CONFIG)
    given = read_json(path)
    model_type = given.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: model_type={model_type!r} is not read here; valid values: "
            f"{', '.join(MODEL_TYPES)}"
        )
    try:
        config = getattr(library(), f"{MODEL_TYPES[model_type][0]}Config").from_dict(given)
    except Exception as error:  # transformers checks each field, with errors of its own
        raise CheckpointError(f"{path}: {reason(error, whole=True)}") from None
    check_fixed(path, config.to_dict(), FIXED_HERE)
    # a model that is fine-tuned without masks has no embedding for them there, and fairseq's has
    config.mask_time_prob = config.mask_time_prob or 0.05
    return config


def _is_ctc(config) -> bool:
    return any(name.endswith("ForCTC") for name in config.architectures or [])


def _class_of(folder: str, config, weights: dict) -> tuple[str, bool]:
    """transformers' class for what is converted, and whether it has a CTC head."""
    prefix = MODEL_TYPES[config.model_type][0]
    given = (config.architectures or [None])[0]
    valid = [prefix + end for end in CLASSES]
    if given is not None and given not in valid:
        raise CheckpointError(
            f"{os.path.join(folder, CONFIG)}: architectures={given} is not read here; valid "
            f"values: {', '.join(valid)}"
        )
    ctc = _is_ctc(config) or (given is None and f"{HEAD}weight" in weights)
    return f"{prefix}ForCTC" if ctc else f"{prefix}Model", ctc


def _load(folder: str, name: str, config, weights: dict):
    """The model, the names of weights that only pretraining needs, and notes."""
    try:
        model, info = getattr(library(), name).from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # named below
            output_loading_info=True,
        )
    except Exception as error:
        said = reason(error, whole=True, most=300)
        raise CheckpointError(f"{folder}: transformers cannot load it as {name}: {said}") from None
    extra = {without_prefix(key): key for key in info["unexpected_keys"]}
    dropped = [key for short, key in extra.items() if short.startswith(PRETRAINING_ONLY)]
    missing = [key for key in info["missing_keys"] if without_prefix(key) != MASK]
    unknown = [key for key in extra.values() if key not in dropped]
    shapes = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    found = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    reasons = [f"{kind}: {', '.join(sorted(keys)[:3])}" for kind, keys in found if keys]
    if reasons:
        raise CheckpointError(f"{folder}: its weights are not a {name}'s; {'; '.join(reasons)}")
    notes = []
    if info["missing_keys"]:
        base = getattr(model, model.base_model_prefix, model)
        torch.nn.init.zeros_(base.masked_spec_embed)
        notes.append("it has no embedding of masked frames, which begins as zero")
    return model.eval(), dropped, notes


def _normalize(folder: str, given: bool | None) -> bool:
    path, preprocessor = _read_feature_extractor(folder)
    if preprocessor is None:
        if given is None:
            raise CheckpointError(
                f"{path} does not exist, nor {PROCESSOR} with a feature_extractor, and nothing "
                "else says whether waveforms are normalised: give convert --normalize true or "
                "--normalize false"
            )
        return given
    sample_rate = preprocessor.get("sampling_rate", SAMPLE_RATE_HZ)
    if sample_rate != SAMPLE_RATE_HZ:
        raise CheckpointError(f"{path}: sampling_rate={sample_rate}; it must be {SAMPLE_RATE_HZ}")
    normalize = preprocessor.get("do_normalize", True)  # transformers' default
    if not isinstance(normalize, bool) or given not in (None, normalize):
        raise CheckpointError(
            f"{path}: do_normalize={normalize}, which --normalize is for where it is missing"
        )
    return normalize


def _read_feature_extractor(folder: str) -> tuple[str, dict | None]:
    """The file with the options of the feature extractor, and those, None where there is none: a
    processor that transformers 5 saves has them within its own."""
    path, processor = os.path.join(folder, PREPROCESSOR), os.path.join(folder, PROCESSOR)
    if os.path.isfile(path):
        return path, read_json(path)
    within = read_json(processor).get("feature_extractor") if os.path.isfile(processor) else None
    if isinstance(within, dict):
        return processor, within
    return path, None


def _sort(folder: str, model, options: dict) -> tuple[dict, dict]:
    """Weights of the encoder under fairseq's names, and of the head."""
    group_norm = options.get("feat_extract_norm") == "group"
    encoder, head = {}, {}
    for name, weight in model.state_dict().items():
        if name.startswith(HEAD):
            head[name.removeprefix(HEAD)] = weight
            continue
        ours = to_fairseq(name, group_norm)
        if ours is None:
            raise CheckpointError(f"{folder}: fairseq's encoder has nothing like {name}")
        encoder[ours] = weight
    if model.config.conv_dim[-1] == model.config.hidden_size:
        drop_projection(folder, model, encoder)
    return encoder, head
