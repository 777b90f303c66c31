"""Where a relative path that does not exist was looked for."""

import os

from hydra.core.hydra_config import HydraConfig


def looked_for(path: str) -> str:
    """The end of a message that ``path`` does not exist; empty for a whole path.
    Hydra runs a training in a folder of its own."""
    if os.path.isabs(path):
        return ""
    told = f"; it was looked for at {os.path.abspath(path)}"
    began = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else os.getcwd()
    if began == os.getcwd():
        return told
    there = os.path.join(began, path)
    remedy = f"give the whole path, {there}" if os.path.exists(there) else "give whole paths"
    return f"{told}, as Hydra runs a training in its output folder: {remedy}"
