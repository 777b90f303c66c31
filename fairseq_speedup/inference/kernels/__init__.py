"""What the inference forms do in C on CPUs: rows between products, and attention.

The installation compiles it (``setup.py``); where that had no compiler torch's operators do the
same, slower. Called through ctypes, it knows nothing of torch but where numbers lie.
"""

import ctypes
import importlib.machinery
import importlib.metadata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POINTER, SIZE, FLOAT, INT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
HERE = Path(__file__).parent
NAMES = [f"_kernels{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]


def _candidates() -> Iterator[Path]:
    """Beside this file, or where the plugin is installed: a user directory may be a checkout."""
    yield from (path for name in NAMES if (path := HERE / name).exists())
    try:
        files = importlib.metadata.files("fairseq_speedup") or []
    except importlib.metadata.PackageNotFoundError:
        return
    yield from (Path(str(each.locate())) for each in files if each.name in NAMES)


def sources_of(folder: Path) -> int:
    """A number that tells one set of sources from another; ``setup.py`` compiles it in."""
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(folder.glob("*.[ch]"))))


def _load() -> tuple[Any, str]:
    """The library or None, and why in words. Torch is loaded before, so that both have the same
    threads."""
    import torch  # noqa: F401

    why = "the plugin was installed without a C compiler"
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
            library.sources.restype = ctypes.c_uint32
            if library.sources() == sources_of(HERE):
                return library, ""
        except (OSError, AttributeError):  # of another system, or no library of this
            pass
        why = f"{path} was compiled from other sources: install the plugin again"
    return None, why


LIBRARY, _WHY_NOT = _load()


def declare(name: str, *arguments, returns=None) -> None:
    """The types that a function of the library is called with."""
    if LIBRARY is not None:
        function = getattr(LIBRARY, name)
        function.argtypes, function.restype = arguments, returns


def how() -> str:
    """What computes it here, in words."""
    return f"torch's operators: {_WHY_NOT}" if LIBRARY is None else "compiled"
