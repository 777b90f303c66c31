"""Dictionaries of labels: from their symbols, and what two of them do not share."""

from fairseq.data import Dictionary


def dictionary_of(symbols: list[str]) -> Dictionary:
    """fairseq's dictionary of ``symbols``, whose first ones it has by itself."""
    dictionary = Dictionary()
    for symbol in symbols[dictionary.nspecial :]:
        dictionary.add_symbol(symbol)
    return dictionary


def difference(data: list[str], checkpoint: list[str]) -> str:
    """In words, for symbols of the data's dictionary and of a checkpoint's."""
    only_data = sorted(set(data) - set(checkpoint))[:5]
    only_checkpoint = sorted(set(checkpoint) - set(data))[:5]
    if not only_data and not only_checkpoint:
        return "the same symbols in another order"
    return f"only in the data: {only_data}, only in the checkpoint: {only_checkpoint}"
