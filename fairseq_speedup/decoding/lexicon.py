"""Build a lexicon: the words that decoding can find, each with its spelling in labels.

Reads the transcripts of the training split (DATA/{split}.wrd, or the labels where there is none), or
--words, and spells each word in the labels of DATA/dict.{labels}.txt. A line is a word, a tab and its
labels: CAT<TAB>C A T |.
"""

import os
from collections import Counter
from dataclasses import dataclass

from fairseq_speedup.data.manifest import ManifestError, read_lines
from fairseq_speedup.decoding.words import Words

MAX_NAMED = 5


@dataclass
class Lexicon:
    """words: in the file's order; spellings: of each word, one or more lists of labels."""

    words: list[str]
    spellings: dict[str, list[list[str]]]


def read_lexicon(path: str, words: Words) -> Lexicon:
    """
    Args:
        words: of the labels that the lexicon is for
    Raises:
        FileNotFoundError, ManifestError: naming the file and the line
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"--lexicon {path} does not exist; python -m fairseq_speedup lexicon makes one of the "
            "training labels or of a word list"
        )
    known = set(words.symbols)
    spellings: dict[str, list[list[str]]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        word, *spelling = line.split()
        where = f"{path}, line {number}: {word!r}"
        if not spelling:
            raise ManifestError(f"{where} has no spelling; a line is a word and its labels")
        unknown = [symbol for symbol in spelling if symbol not in known]
        if unknown:
            raise ManifestError(
                f"{where} is spelled with {' '.join(unknown[:MAX_NAMED])}, which the dictionary "
                f"lacks; its symbols: {' '.join(words.spoken[:40])}"
            )
        if words.of(spelling) != [word]:
            raise ManifestError(
                f"{where} is spelled {' '.join(spelling)}, which reads "
                f"{' '.join(words.of(spelling))!r}: fairseq-generate prints the labels, so that a "
                "word must be what its labels say"
            )
        if spelling not in spellings.setdefault(word, []):
            spellings[word].append(spelling)
    if not spellings:
        raise ManifestError(f"{path} has no words; a line is a word and its labels")
    return Lexicon(list(spellings), spellings)


def write_lexicon(path: str, lexicon: Lexicon) -> None:
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        for word in lexicon.words:
            file.writelines(f"{word}\t{' '.join(each)}\n" for each in lexicon.spellings[word])
    os.replace(part, path)


def lexicon_of_labels(lines: list[list[str]], words: Words) -> Lexicon:
    """Every word of lines of labels as it is labelled there, sorted; a word that is labelled in
    several ways has several spellings, the most frequent first."""
    counts: dict[str, Counter] = {}
    for line in lines:
        for start, end in words.spans(line):
            spelling = words.closed(line[start:end])
            (word,) = words.of(spelling)
            counts.setdefault(word, Counter())[tuple(spelling)] += 1
    spellings = {
        word: [list(spelling) for spelling, _ in counts[word].most_common()]
        for word in sorted(counts)
    }
    return Lexicon(list(spellings), spellings)
