"""How labels make words: letters with a boundary symbol, or sentencepiece's pieces."""

LETTER_BOUNDARY = "|"  # a label of its own, after each word
PIECE_BOUNDARY = "\u2581"  # begins each word's first piece


class Words:
    """
    Args:
        symbols: of the dictionary
        unspoken: labels that no transcript has: fairseq's padding, end of sentence and unknown
    """

    def __init__(self, symbols: list[str], unspoken: tuple[int, ...] = ()):
        self.symbols = symbols
        self.unspoken = unspoken
        self.boundary = None
        if LETTER_BOUNDARY in symbols:
            self.boundary = LETTER_BOUNDARY
        elif any(symbol.startswith(PIECE_BOUNDARY) for symbol in symbols):
            self.boundary = PIECE_BOUNDARY

    @classmethod
    def of_dictionary(cls, dictionary) -> "Words":
        """
        Args:
            dictionary: fairseq's
        """
        specials = (dictionary.pad(), dictionary.eos(), dictionary.unk())
        return cls(dictionary.symbols, specials)

    @property
    def spoken(self) -> list[str]:
        """Symbols after fairseq's specials"""
        return [s for label, s in enumerate(self.symbols) if label not in self.unspoken]

    @property
    def boundary_label(self) -> int | None:
        """Index of the label that stands between words, if there is one."""
        if self.boundary == LETTER_BOUNDARY:
            return self.symbols.index(LETTER_BOUNDARY)
        return None

    def of(self, symbols: list[str]) -> list[str]:
        """The words of a line of labels."""
        if self.boundary is None:
            return list(symbols)
        return "".join(symbols).replace(self.boundary, " ").split()

    def spans(self, symbols: list[str]) -> list[tuple[int, int]]:
        """(first label, label after the last) of each word of a line of labels; boundaries that are
        labels belong to no word."""
        spans, start = [], None
        for position, symbol in enumerate(symbols):
            if self.boundary is None or symbol.startswith(self.boundary):
                if start is not None:
                    spans.append((start, position))
                start = None
            if symbol != self.boundary and start is None:
                start = position
        if start is not None:
            spans.append((start, len(symbols)))
        return spans
