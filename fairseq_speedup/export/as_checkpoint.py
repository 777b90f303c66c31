"""An exported file in the place of a checkpoint: ``fairseq-generate --path model.onnx``."""

import os

import torch

from fairseq_speedup.checkpoints.opening import CheckpointError, state_without_training
from fairseq_speedup.data.dictionary import dictionary_of
from fairseq_speedup.export.engines import open_exported
from fairseq_speedup.models.exported_ctc import KIND, opened


def read_exported(path: str, overrides: dict) -> dict:
    """The state of a checkpoint whose model is the file.

    Args:
        overrides: of options, of which a file has none
    Raises:
        CheckpointError: options were given
        FileNotFoundError, ExportedFileError, MissingExtraError
    """
    if overrides:
        raise CheckpointError(
            f"{path} is as it was exported: {', '.join(overrides)} cannot be changed; leave "
            "--model-overrides out, or give the checkpoint"
        )
    path = os.path.abspath(path)
    session = opened[path] = open_exported(path, torch.get_num_threads())
    metadata = session.metadata
    task = {
        "_name": "speedup_finetuning",
        "data": "",
        "labels": metadata.labels,
        "normalize": metadata.normalize,
        "sample_rate": metadata.sample_rate_hz,
    }
    return state_without_training(
        {},
        cfg={"model": {"_name": KIND, "path": path}, "task": task},
        task_state={"target_dictionary": dictionary_of(metadata.symbols)},
    )
