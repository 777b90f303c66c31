"""Hardware and versions, so that a figure can be read later."""

import platform
import resource
import sys
from collections.abc import Sequence
from importlib import metadata

import torch

PACKAGES = ["torch", "fairseq", "ve-fairseq", "fairseq_speedup", "fvcore", "numpy"]


def hardware(device: torch.device) -> dict:
    found = {
        "device": str(device),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def versions(more: Sequence[str] = ()) -> dict:
    """
    Args:
        more: packages beside those that matter everywhere
    """
    found = {"python": platform.python_version()}
    for package in [*PACKAGES, *more]:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU's allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
