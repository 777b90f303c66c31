"""How labels make words: letters with a boundary symbol, or sentencepiece's pieces."""

import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

LETTER_BOUNDARY = "|"  # a label of its own, after each word
PIECE_BOUNDARY = "\u2581"  # begins each word's first piece
STRIPPED = {"<s>", "<pad>", "</s>"}  # fairseq-generate prints them not, should a model emit them


def boundary_of(symbols: Collection[str]) -> str | None:
    """What stands between words in labels: sentencepiece's mark where a label begins with it (the
    letters' boundary is then a character), else the letters' boundary where it is a label, else
    that mark within labels; None where there is none of it."""
    if any(symbol.startswith(PIECE_BOUNDARY) for symbol in symbols):
        return PIECE_BOUNDARY
    if LETTER_BOUNDARY in symbols:
        return LETTER_BOUNDARY
    return PIECE_BOUNDARY if any(PIECE_BOUNDARY in symbol for symbol in symbols) else None


class Words:
    """
    Args:
        symbols: of the dictionary
        unspoken: labels that no transcript has: fairseq's padding, end of sentence and unknown
    """

    def __init__(self, symbols: list[str], unspoken: Sequence[int] = ()):
        self.symbols = symbols
        self.unspoken = unspoken
        self.boundary = boundary_of(symbols)

    @classmethod
    def of_dictionary(cls, dictionary: Any) -> "Words":
        """
        Args:
            dictionary: fairseq's
        """
        specials = (dictionary.pad(), dictionary.eos(), dictionary.unk())
        return cls(dictionary.symbols, specials)

    def told_apart_by(self, boundary: str | None) -> "Words":
        """The same labels with another boundary; None makes a word of each."""
        words = Words(self.symbols, self.unspoken)
        words.boundary = boundary
        return words

    @property
    def spoken(self) -> list[str]:
        """Symbols that transcripts have."""
        return [s for label, s in enumerate(self.symbols) if label not in self.unspoken]

    @property
    def boundary_label(self) -> int | None:
        """Index of the label that stands between words, if there is one."""
        if self.boundary == LETTER_BOUNDARY:
            return self.symbols.index(LETTER_BOUNDARY)
        return None

    def of(self, symbols: list[str]) -> list[str]:
        """The words of a line of labels."""
        symbols = [symbol for symbol in symbols if symbol not in STRIPPED]
        if self.boundary is None:
            return symbols
        return "".join(symbols).replace(self.boundary, " ").split()

    def says_something(self, symbols: list[str]) -> list[bool]:
        """Of each label of a line, whether its words are others without it as they are joined: a
        boundary that another one follows ends or begins no word."""
        following = [*symbols[1:], ""][: len(symbols)]
        return [
            self.boundary is None or symbol != self.boundary or not after.startswith(symbol)
            for symbol, after in zip(symbols, following, strict=True)
        ]

    def of_path(self, path: np.ndarray, blank: int) -> tuple[str, ...]:
        """The words of a label for each frame (T,), repeats merged and blanks dropped."""
        first = np.ones(len(path), dtype=bool)
        first[1:] = path[1:] != path[:-1]
        labels = path[first & (path != blank)]
        return tuple(self.of([self.symbols[label] for label in labels]))

    def whole_before(self, path: np.ndarray, blank: int) -> np.ndarray:
        """Before which frames (T,) all words of a path (T,) are whole: where a boundary came last,
        or a label comes next that begins a word."""
        if self.boundary is None:
            return np.ones(len(path), dtype=bool)
        frames, spoken = np.arange(len(path)), path != blank
        if (boundary := self.boundary_label) is not None:
            last = np.maximum.accumulate(np.where(spoken, frames, -1))
            before = np.append(-1, last[:-1])
            return (before < 0) | (path[before] == boundary)
        begins = np.array([symbol.startswith(PIECE_BOUNDARY) for symbol in self.symbols])
        following = np.where(spoken, frames, len(path))[::-1]
        after = np.minimum.accumulate(following)[::-1]
        return np.append(begins[path], True)[after]

    def closed(self, symbols: list[str]) -> list[str]:
        """A word's labels with the boundary that ends it, where that is a label of its own."""
        return [*symbols, self.boundary] if self.boundary == LETTER_BOUNDARY else list(symbols)

    def is_bounded(self, symbols: list[str]) -> bool:
        """Whether a word's labels keep it apart from its neighbours."""
        if self.boundary == LETTER_BOUNDARY:
            return symbols[-1] == LETTER_BOUNDARY
        return self.boundary is None or symbols[0].startswith(self.boundary)

    def spans(self, symbols: list[str]) -> list[tuple[int, int]]:
        """(first label, label after the last) of each of the words :meth:`of` a line of labels. The
        letters' boundary belongs to no word, one that begins a piece to the word that follows; a
        label with a boundary within belongs to the words on both sides."""
        if self.boundary is None:
            return [(n, n + 1) for n, symbol in enumerate(symbols) if symbol not in STRIPPED]
        boundary = re.compile(rf"[{re.escape(self.boundary)}\s]")
        spans, start, begun = [], 0, False
        for position, symbol in enumerate(symbols):
            if symbol in STRIPPED:
                continue
            parts = boundary.split(symbol)
            begun |= parts[0] != ""
            for before, after in itertools.pairwise(parts):
                if begun:
                    spans.append((start, position + (before != "")))
                begun = after != ""
                begins_next = begun or not symbol.strip(PIECE_BOUNDARY)
                start = position if begins_next else position + 1
        return [*spans, (start, len(symbols))] if begun else spans
