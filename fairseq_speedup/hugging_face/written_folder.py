"""A folder in Hugging Face's form out of an encoder."""

import json
import os

from fairseq_speedup.checkpoints.folders import CONFIG
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.console.refusals import reason
from fairseq_speedup.hugging_face.config import MODEL_TYPES, config_options
from fairseq_speedup.hugging_face.folder import PREPROCESSOR, PROCESSOR
from fairseq_speedup.hugging_face.labels import vocabulary
from fairseq_speedup.hugging_face.library import library
from fairseq_speedup.hugging_face.names import from_fairseq
from fairseq_speedup.hugging_face.projection import PROJECTION, PROJECTION_THERE, unprojected
from fairseq_speedup.pretrained.families import Pretrained
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

WRITTEN = (
    *(CONFIG, "model.safetensors", PREPROCESSOR, PROCESSOR),
    *("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)


def write_folder(folder: str, path: str, pretrained: Pretrained, conv_layers) -> None:
    """Writes an encoder, as ForCTC where it has a head, for transformers' ``AutoModel``,
    ``AutoModelForCTC`` and ``AutoProcessor``.

    Args:
        folder: that exists
        path: of the checkpoint, for messages
        conv_layers: (dim, kernel_size, stride) of each convolution
    Raises:
        CheckpointError: a model that no such class can be
    """
    transformers = library()
    options = config_options(path, pretrained.cfg, conv_layers)
    prefix = MODEL_TYPES[options.pop("model_type")][0]
    group_norm = options["feat_extract_norm"] == "group"
    kind = "Model"
    if pretrained.head:
        kind = "ForCTC"
        vocab = vocabulary(path, pretrained.labels or [])
        options |= {"vocab_size": len(vocab), "pad_token_id": 0}
    config = getattr(transformers, f"{prefix}Config")(**options)
    model = getattr(transformers, f"{prefix}{kind}")(config)
    _fill(path, model, pretrained, group_norm)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE_HZ,
        do_normalize=bool(pretrained.cfg.task.normalize),
        return_attention_mask=not group_norm,
    ).save_pretrained(folder)
    if pretrained.head:
        vocab_path = os.path.join(folder, "vocab.json")
        with open(vocab_path, "w", encoding="utf-8") as file:
            json.dump(vocab, file, ensure_ascii=False)
        tokenizer = transformers.Wav2Vec2CTCTokenizer(
            vocab_path, processor_class="Wav2Vec2Processor"
        )
        tokenizer.save_pretrained(folder)


def _fill(path: str, model, pretrained: Pretrained, group_norm: bool) -> None:
    base = getattr(model, model.base_model_prefix, model)
    weights = {}
    for name, weight in pretrained.weights.items():
        theirs = from_fairseq(name, group_norm)
        if theirs is None:
            raise CheckpointError(f"{path}: Hugging Face's {type(model).__name__} has no {name}")
        weights[theirs] = weight
    if f"{PROJECTION}weight" not in pretrained.weights:
        for key, same in unprojected(model):
            weights[PROJECTION_THERE + key] = same
    try:
        base.load_state_dict(weights, strict=True)
        if pretrained.head:
            model.lm_head.load_state_dict(pretrained.head, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {reason(error, whole=True, most=300)}") from None
