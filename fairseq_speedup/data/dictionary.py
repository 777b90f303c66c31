"""Dictionaries of labels: read, made from their symbols, and what two of them do not share."""

import io
import os

from fairseq.data import Dictionary

from fairseq_speedup.data.characters import told_apart
from fairseq_speedup.data.manifest import ManifestError, read_lines
from fairseq_speedup.relative_paths import looked_for

FORM = "each of its lines is a label and a count"


def dictionary_of(symbols: list[str]) -> Dictionary:
    """fairseq's dictionary of ``symbols``, whose first ones it has by itself."""
    dictionary = Dictionary()
    for symbol in symbols[dictionary.nspecial :]:
        dictionary.add_symbol(symbol)
    return dictionary


def read_dictionary(path: str, name: str = "dictionary") -> Dictionary:
    """Reads ``dict.{labels}.txt``, without a byte order mark before its first label.

    Args:
        name: of what is read, for messages
    Raises:
        FileNotFoundError, ManifestError: naming the file
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name} {path} does not exist; {FORM}{looked_for(path)}")
    lines = read_lines(path)
    try:
        return Dictionary.load(io.StringIO("\n".join(lines)))
    except (ValueError, RuntimeError) as error:
        raise ManifestError(f"{name} {path}: {' '.join(str(error).split())}; {FORM}") from None


def difference(data: list[str], checkpoint: list[str]) -> str:
    """In words, for symbols of the data's dictionary and of a checkpoint's."""
    only_data = sorted(set(data) - set(checkpoint))[:5]
    only_checkpoint = sorted(set(checkpoint) - set(data))[:5]
    if not only_data and not only_checkpoint:
        return "the same symbols in another order"
    return (
        f"only in the data: {told_apart(only_data, only_checkpoint) or 'none'}, "
        f"only in the checkpoint: {told_apart(only_checkpoint, only_data) or 'none'}"
    )
