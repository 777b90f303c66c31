"""Weights of a folder in Hugging Face's form: in one file or several, safetensors or a pickle."""

import os

import torch

from fairseq_speedup.checkpoints.folders import WEIGHTS
from fairseq_speedup.checkpoints.opening import CheckpointError, read_pickle
from fairseq_speedup.hugging_face.config import without_prefix
from fairseq_speedup.hugging_face.labels import read_json

# weights of pretraining, in the library's own classes and in others' uploads
PRETRAINING_ONLY = ("quantizer.", "project_hid.", "project_q.", "final_proj.", "label_embs_concat")


def read_weights(folder: str) -> dict[str, torch.Tensor]:
    """All weights of a folder, in one file or several.

    Raises:
        FileNotFoundError, CheckpointError: naming the file
    """
    weights: dict = {}
    for path in weight_files(folder):
        weights |= _read_file(path)
    return weights


def pretraining_weights(folder: str) -> dict[str, torch.Tensor]:
    """Weights that only pretraining needs, without the model's name before theirs."""
    named = {without_prefix(name): weight for name, weight in read_weights(folder).items()}
    return {name: weight for name, weight in named.items() if name.startswith(PRETRAINING_ONLY)}


def weight_files(folder: str) -> list[str]:
    """Paths of the files that hold a folder's weights.

    Raises:
        FileNotFoundError, CheckpointError: naming the file
    """
    for name in WEIGHTS:
        path = os.path.join(folder, name)
        index = f"{path}.index.json"
        if os.path.isfile(path):
            return [path]
        if os.path.isfile(index):
            return _shards(folder, index)
    raise FileNotFoundError(
        f"{folder} has no weights: neither {' nor '.join(WEIGHTS)}, nor an index of shards"
    )


def _shards(folder: str, index: str) -> list[str]:
    places = read_json(index).get("weight_map")
    shards = set(places.values()) if isinstance(places, dict) else set()
    if not shards or any(not isinstance(s, str) or os.path.basename(s) != s for s in shards):
        raise CheckpointError(f"{index}: its weight_map does not name files of this folder")
    missing = [s for s in sorted(shards) if not os.path.isfile(os.path.join(folder, s))]
    if missing:
        raise FileNotFoundError(f"{index} names {', '.join(missing)}, not in {folder}")
    return [os.path.join(folder, shard) for shard in sorted(shards)]


def _read_file(path: str) -> dict[str, torch.Tensor]:
    if path.endswith(".bin"):
        weights = read_pickle(path)
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} ({os.path.getsize(path):,} bytes) cannot be read: truncated, or no "
                f"safetensors file ({error})"
            ) from None
    if not all(map(torch.is_tensor, weights.values())):
        raise CheckpointError(f"{path} holds something else than weights by name")
    return weights
