"""Dictionaries, ``dict.{labels}.txt``: what is in one, and what two do not share."""

from fairseq_speedup.data.manifest import ManifestError, read_lines

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]  # fairseq's, before the file's
OVERWRITE = " #fairseq:overwrite"  # ends the line of a symbol that may be there already


def read_symbols(path: str) -> list[str]:
    """The symbols of a dictionary, fairseq's specials first, in the order of their labels. Reads
    what fairseq's ``Dictionary.load`` reads, which takes torch.

    Raises:
        ManifestError: naming the line that is not a symbol and a count, or whose symbol is there
            already
    """
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


def difference(data: list[str], checkpoint: list[str]) -> str:
    """In words, for symbols of the data's dictionary and of a checkpoint's."""
    only_data = sorted(set(data) - set(checkpoint))[:5]
    only_checkpoint = sorted(set(checkpoint) - set(data))[:5]
    if not only_data and not only_checkpoint:
        return "the same symbols in another order"
    return f"only in the data: {only_data}, only in the checkpoint: {only_checkpoint}"
