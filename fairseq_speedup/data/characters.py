"""Characters that look alike: what cannot be told by eye is given by its code points."""

import unicodedata
from collections.abc import Iterable


def code_points(symbol: str) -> str:
    """Such as ``U+0045 U+0301``"""
    return " ".join(f"U+{ord(character):04X}" for character in symbol)


class LookAlikes:
    """Symbols in words. Code points stand behind one that is known in another Unicode normal form,
    or that is not to be seen by itself: accents alone, byte order marks, blanks.

    Args:
        known: symbols that those told are not among
    """

    def __init__(self, known: Iterable[str]):
        self.twins = {_folded(symbol): symbol for symbol in known}

    def told(self, unknown: Iterable[str]) -> str:
        return " ".join(map(self._told, unknown))

    def _told(self, symbol: str) -> str:
        twin = self.twins.get(_folded(symbol))
        if twin is not None:
            return (
                f"{symbol} ({code_points(symbol)}; {code_points(twin)}, another Unicode normal "
                "form of it, is known: normalise both alike)"
            )
        if any(unicodedata.category(character)[0] in "MCZ" for character in symbol):
            return f"{symbol} ({code_points(symbol)})"
        return symbol


def told_apart(unknown: Iterable[str], known: Iterable[str]) -> str:
    """See :class:`LookAlikes`"""
    return LookAlikes(known).told(unknown)


def _folded(symbol: str) -> str:
    return unicodedata.normalize("NFKC", symbol)
