"""What the inference forms do in C on CPUs: rows between products, and attention.

The installation compiles it (``setup.py``); where there is no compiler torch's operators do the
same, slower. Called through ctypes, it knows nothing of torch but where numbers lie.
"""

import ctypes
import importlib.machinery
from pathlib import Path
from typing import Any

POINTER, SIZE, FLOAT, INT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int


def _load() -> ctypes.CDLL | None:
    """Torch is loaded before, so that both have the same threads."""
    import torch  # noqa: F401

    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # of another system
                return None
    return None


LIBRARY: Any = _load()


def declare(name: str, *arguments, returns=None) -> None:
    """The types that a function of the library is called with."""
    if LIBRARY is not None:
        function = getattr(LIBRARY, name)
        function.argtypes, function.restype = arguments, returns


def how() -> str:
    """What does it here, in words."""
    return "torch's operators: the installation had no C compiler" if LIBRARY is None else "C"
