"""Where a relative path that does not exist was looked for."""

import os
import sys


def looked_for(path: str) -> str:
    """The end of a message that ``path`` does not exist; empty for a whole path.
    Hydra runs a training in a folder of its own."""
    if os.path.isabs(path):
        return ""
    told = f"; it was looked for at {os.path.abspath(path)}"
    began = _began_in()
    if began == os.getcwd():
        return told
    there = os.path.join(began, path)
    remedy = f"give the whole path, {there}" if os.path.exists(there) else "give whole paths"
    return f"{told}, as Hydra runs a training in its output folder: {remedy}"


def _began_in() -> str:
    """The folder that the user is in."""
    if "hydra.core.hydra_config" in sys.modules:  # else nobody has started it
        from hydra.core.hydra_config import HydraConfig

        if HydraConfig.initialized():
            return HydraConfig.get().runtime.cwd
    return os.getcwd()
