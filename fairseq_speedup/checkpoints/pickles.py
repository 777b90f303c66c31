"""Which types a pickle asks for, read from its opcodes: nothing is built and nothing runs."""

import _compat_pickle
import argparse
import collections
import os
import pickletools
import typing
import zipfile
from collections.abc import Iterator

import omegaconf
from fairseq.data import Dictionary
from omegaconf import nodes
from torch import _weights_only_unpickler

# What fairseq's own checkpoints hold beside tensors. None of it runs code when unpickled.
HARMLESS_TYPES = [
    Dictionary,
    argparse.Namespace,
    collections.defaultdict,
    dict,
    list,
    int,
    typing.Any,
    omegaconf.DictConfig,
    omegaconf.ListConfig,
    omegaconf.base.Metadata,
    omegaconf.base.ContainerMetadata,
    nodes.AnyNode,
    nodes.StringNode,
    nodes.IntegerNode,
    nodes.FloatNode,
    nodes.BooleanNode,
]

ZIP = b"PK\x03\x04"  # the first bytes
LEGACY_PICKLES = 5  # of a file before PyTorch 1.6: three of a head, the object, its storages' keys


def format_of(path: str) -> str:
    """``zip``, as PyTorch writes since 1.6, or ``legacy``, a sequence of pickles. Told by the first
    bytes, as torch does: a pickle may have an archive at its end."""
    with open(path, "rb") as file:
        return "zip" if file.read(len(ZIP)) == ZIP else "legacy"


def types_asked_for(path: str) -> list[str]:
    """Full names of the types and functions in a file of ``torch.save``, as far as it can be read.

    Raises:
        OSError: no file
    """
    names: list[str] = []
    try:
        for stream in _streams(path):
            names.extend(_globals(stream))
    except OSError:
        raise
    except Exception:  # a spoilt file ends here, in one of many ways
        pass
    return sorted(set(names))


def refused_types(names: list[str]) -> list[str]:
    """Those that neither torch's restricted unpickler nor the allow-list here has."""
    harmless = {f"{each.__module__}.{each.__qualname__}" for each in HARMLESS_TYPES}
    allowed = harmless | set(_weights_only_unpickler._get_allowed_globals())
    return [name for name in names if name not in allowed]


def _streams(path: str) -> Iterator:
    """Open files, each at the start of a pickle."""
    if format_of(path) == "legacy":
        with open(path, "rb") as file:
            for _ in range(LEGACY_PICKLES):
                yield file
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # what is larger than its file is packed, which PyTorch's are not
            if entry.filename.endswith(".pkl") and entry.file_size <= os.path.getsize(path):
                with archive.open(entry) as file:
                    yield file


def _globals(file) -> Iterator[str]:
    memo: dict = {}
    last, before = None, None  # the two last strings, which name a STACK_GLOBAL
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield _full_name(*str(argument).split(" ", 1))
        elif opcode.name == "STACK_GLOBAL":
            yield _full_name(str(before), str(last))
        elif opcode.name.startswith("EXT"):
            yield f"extension {argument} of copyreg"
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif "PUT" in opcode.name:
            memo[argument] = last
        elif "GET" in opcode.name:
            before, last = last, memo.get(argument)
        elif isinstance(argument, str):
            before, last = last, argument


def _full_name(module: str, name: str) -> str:
    """Under today's name: pickles have Python 2's."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
