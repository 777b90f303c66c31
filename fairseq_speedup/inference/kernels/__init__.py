"""What the inference forms do in C on CPUs: transformer layers as a whole or in parts, which are
linear layers in fp32 and int8 and attention, convolutions, and rows between products.

The installation compiles it (``setup.py``); where that had no compiler torch's operators do the
same, slower. Called through ctypes, it knows nothing of torch but where numbers lie.
"""

import ctypes
import importlib.machinery
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

POINTER, SIZE, FLOAT, INT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
HERE = Path(__file__).parent
# of the vectors that matrices are multiplied in; torch's, which ATEN_CPU_CAPABILITY can be less of
MOST_BITS = {"DEFAULT": 128, "AVX2": 256}.get(torch.backends.cpu.get_cpu_capability(), 512)
NAMES = [f"_kernels{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]


def _candidates() -> Iterator[Path]:
    """Beside this file, or where the plugin is installed: a user directory may be a checkout, which
    hides the installation and has no library."""
    folders = [HERE, *(Path(each) / "fairseq_speedup/inference/kernels" for each in sys.path)]
    for path in dict.fromkeys(folder / name for folder in folders for name in NAMES):
        if path.is_file():
            yield path


def sources_of(folder: Path) -> int:
    """A number that tells one set of sources from another; ``setup.py`` compiles it in."""
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(folder.glob("*.[ch]"))))


def _load() -> tuple[Any, str]:
    """The library or None, and why in words. It comes after torch, so that both have the same
    threads."""
    why = [
        "no library was found: pip had no C compiler, or one that it failed with (pip install -v "
        "says how), or what runs is a checkout that was never installed"
    ]
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
            library.sources.restype = ctypes.c_uint32
            if library.sources() == sources_of(HERE):
                return library, ""
            why.append(f"{path} is of other sources: remove it, and install the plugin again")
        except (OSError, AttributeError) as error:  # of another system, or no library of this
            why.append(f"{path} cannot be loaded: {error}")
    return None, why[-1]


LIBRARY, _WHY_NOT = _load()


def declare(name: str, *arguments, returns=None) -> None:
    """The types that a function of the library is called with."""
    if LIBRARY is not None:
        function = getattr(LIBRARY, name)
        function.argtypes, function.restype = arguments, returns


class HoldsAddresses:
    """What C is given addresses of: another copy would not be at them."""

    def __reduce_ex__(self, protocol):
        raise TypeError(
            "a model in its inference form can be neither copied nor saved: load it again, or copy "
            "it before"
        )


def takes(*tensors) -> bool:
    """Whether the library is there, and all of these are as it reads them: fp32, on a CPU."""
    if LIBRARY is None:
        return False
    return all(each.dtype is torch.float32 and each.is_cpu for each in tensors)


def how() -> str:
    """What computes it here, in words."""
    if LIBRARY is None:
        return f"torch's operators: {_WHY_NOT}"
    return f"compiled, products in vectors of up to {MOST_BITS} bits"
