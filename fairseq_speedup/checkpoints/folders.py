"""Folders in Hugging Face's form, which are checkpoints here, told from other folders."""

import os

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
EXPECTED = f"a folder in Hugging Face's form ({CONFIG} with {' or '.join(WEIGHTS)})"


class ModelFolderError(ValueError):
    """A folder that is no checkpoint."""


def check_model_folder(path: str) -> None:
    """Raises ModelFolderError for a folder that holds no model in Hugging Face's form."""
    if os.path.isfile(os.path.join(path, CONFIG)):
        return
    found = [name for name in sorted(os.listdir(path)) if name.endswith(".pt")]
    has = f"; give one of its files: {', '.join(found)}" if found else ""
    raise ModelFolderError(
        f"{path} is a folder without {CONFIG}; a checkpoint is a file, or {EXPECTED}{has}"
    )
