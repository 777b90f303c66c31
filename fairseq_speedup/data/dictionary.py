"""Dictionaries of labels, ``dict.{labels}.txt``: read, made from symbols, and what two do not
share."""

import io
import os
from typing import TYPE_CHECKING

from fairseq_speedup.console.relative_paths import looked_for
from fairseq_speedup.data.characters import told_apart
from fairseq_speedup.data.manifest import ManifestError, read_lines

if TYPE_CHECKING:  # fairseq takes seconds to import
    from fairseq.data import Dictionary

FORM = "each of its lines is a label and a count"
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]  # fairseq's, before the file's
OVERWRITE = " #fairseq:overwrite"  # ends the line of a symbol that may be there already


def read_symbols(path: str) -> list[str]:
    """The symbols of a dictionary, fairseq's specials first, in the order of their labels. Reads
    what fairseq's ``Dictionary.load`` reads, which takes torch.

    Raises:
        FileNotFoundError: no such file
        ManifestError: naming the line that is not a symbol and a count, or whose symbol is there
            already
    """
    _check_exists(path)
    symbols, known = list(SPECIALS), set(SPECIALS)
    for number, line in enumerate(read_lines(path), start=1):
        text = line.rstrip()
        symbol, _, count = text.removesuffix(OVERWRITE).rpartition(" ")
        try:
            int(count)
        except ValueError:
            symbol = ""
        if not symbol:
            raise ManifestError(
                f"dictionary {path}, line {number}: expected a label and a count, found {line!r}"
            )
        if symbol in known and not text.endswith(OVERWRITE):
            raise ManifestError(f"dictionary {path}, line {number}: {symbol!r} is there twice")
        symbols.append(symbol)
        known.add(symbol)
    return symbols


def dictionary_of(symbols: list[str]) -> "Dictionary":
    """fairseq's dictionary of ``symbols``, whose first ones it has by itself."""
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for symbol in symbols[dictionary.nspecial :]:
        dictionary.add_symbol(symbol)
    return dictionary


def read_dictionary(path: str, name: str = "dictionary") -> "Dictionary":
    """fairseq's, from ``dict.{labels}.txt``, without a byte order mark before its first label.

    Args:
        name: of what is read, for messages
    Raises:
        FileNotFoundError, ManifestError: naming the file
    """
    from fairseq.data import Dictionary

    _check_exists(path, name)
    lines = read_lines(path)
    try:
        return Dictionary.load(io.StringIO("\n".join(lines)))
    except (ValueError, RuntimeError) as error:
        raise ManifestError(f"{name} {path}: {' '.join(str(error).split())}; {FORM}") from None


def _check_exists(path: str, name: str = "dictionary") -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name} {path} does not exist; {FORM}{looked_for(path)}")


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
