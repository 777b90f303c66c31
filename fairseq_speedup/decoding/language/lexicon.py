"""Lexica: the words that decoding can find, each with its spelling in labels.

A line is a word, a tab and its labels: CAT<TAB>C A T |.
"""

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fairseq_speedup.data.characters import told_apart
from fairseq_speedup.data.dictionary import SPECIALS, read_symbols
from fairseq_speedup.data.manifest import ManifestError, infer_labels, read_lines
from fairseq_speedup.decoding.language.boundaries import LabelWords
from fairseq_speedup.decoding.language.language_model import read_unigrams
from fairseq_speedup.decoding.language.words import LETTER_BOUNDARY, PIECE_BOUNDARY, Words
from fairseq_speedup.files import written_whole

MAX_NAMED = 5
MAX_CHARACTERS = 20
NO_WORDS = {"<s>", "</s>", "<unk>", "<UNK>"}  # of a language model's vocabulary


def run(args: Namespace) -> None:
    if os.path.exists(args.output) and not args.overwrite:
        raise ManifestError(f"{args.output} exists; give --overwrite to replace it")
    labels = args.labels or infer_labels(args.data, "--labels")
    words = read_words(args.data, labels)
    if args.words is None:
        path = os.path.join(args.data, f"{args.split}.{labels}")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"label file {path} does not exist; give --split or --words")
        lines = [line.split() for line in read_lines(path)]
        post_process = "letter" if words.boundary == LETTER_BOUNDARY else "sentencepiece"
        LabelWords.of(path, lines).check(
            post_process,
            "a lexicon",
            "give --words, or decode without a lexicon, by a language model over labels "
            "(--lexicon-free)",
        )
        lexicon = lexicon_of_labels(lines, words, path)
    else:
        path = args.words
        spell = _speller(words, args.spm_model or os.path.join(args.data, "spm.model"))
        lexicon = lexicon_of_words(read_word_list(path), spell, words, path)
    if not lexicon.words:
        raise ManifestError(f"{path} has no words")
    write_lexicon(args.output, lexicon)
    num_spellings = sum(len(each) for each in lexicon.spellings.values())
    print(f"wrote {args.output}: {len(lexicon.words)} words of {path}, {num_spellings} spellings")


@dataclass
class Lexicon:
    """words: in order; spellings: of each word, one or more lists of labels."""

    words: list[str]
    spellings: dict[str, list[list[str]]]


def read_words(folder: str, labels: str) -> Words:
    """How the labels of a data folder make words, from its dictionary.

    Raises:
        FileNotFoundError, ManifestError: no dictionary, or one whose labels make no words
    """
    path = os.path.join(folder, f"dict.{labels}.txt")
    words = Words(read_symbols(path), tuple(range(1, len(SPECIALS))))  # <s> is the blank
    if words.boundary is None:
        raise ManifestError(
            f"dictionary {path} has neither the boundary label {LETTER_BOUNDARY!r} nor labels that "
            f"begin with {PIECE_BOUNDARY!r}: its labels make no words"
        )
    return words


def read_word_list(path: str) -> list[str]:
    """The words of a list, the first column of its lines, or of an ARPA language model."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--words {path} does not exist")
    unigrams = read_unigrams(path)
    if unigrams is not None:
        return sorted(unigrams - NO_WORDS)
    columns = [line.split() for line in read_lines(path)]
    return list(dict.fromkeys(row[0] for row in columns if row))


def lexicon_of_labels(lines: list[list[str]], words: Words, path: str) -> Lexicon:
    """Every word of lines of labels as it is labelled there, sorted; a word that is labelled in
    several ways has several spellings, the most frequent first.

    Args:
        path: of the lines, for messages
    Raises:
        ManifestError: a label that is in two words
    """
    counts: dict[str, Counter] = {}
    for line in lines:
        for start, end in words.spans(line):
            spelling = words.closed(line[start:end])
            shared = [symbol for symbol in spelling if len(words.of([symbol])) > 1]
            if shared:
                raise ManifestError(
                    f"{path}: the label {shared[0]!r} has a boundary between words within, so that "
                    "no word can be spelled with it: decode by a language model over labels "
                    "(--lexicon-free), or train pieces that are no longer than a word"
                )
            if words.is_bounded(spelling):
                (word,) = words.of(spelling)
                counts.setdefault(word, Counter())[tuple(spelling)] += 1
    spellings = {
        word: [list(spelling) for spelling, _ in counts[word].most_common()]
        for word in sorted(counts)
    }
    return Lexicon(list(spellings), spellings)


def lexicon_of_words(
    listed: list[str], spell: Callable[[str], list[str]], words: Words, path: str
) -> Lexicon:
    """
    Args:
        listed: the words
        spell: gives a word's labels
        path: of the list, for messages
    Raises:
        ManifestError: no word can be spelled
    """
    known = set(words.symbols)
    spellings, bad = {}, []
    for word in listed:
        spelling = spell(word)
        if known.issuperset(spelling) and _spells(spelling, word, words):
            spellings[word] = [spelling]
        else:
            bad.append(word)
    if bad:
        message = (
            f"{path}: {len(bad)} of {len(listed)} words have characters that the labels lack: "
            f"{', '.join(bad[:MAX_NAMED])}; labels: {' '.join(words.spoken[:40])}"
        )
        if words.boundary == LETTER_BOUNDARY:
            characters = {character for word in bad for character in word} - known
            message += f"; they lack {told_apart(sorted(characters)[:MAX_CHARACTERS], known)}"
        if not spellings:
            raise ManifestError(f"{message}. Words must be written as in the training transcripts")
        print(f"warning: {message}. They are left out", flush=True)
    return Lexicon(list(spellings), spellings)


def _spells(spelling: list[str], word: str, words: Words) -> bool:
    return words.of(spelling) == [word] and words.is_bounded(spelling)


def _speller(words: Words, spm_model: str) -> Callable[[str], list[str]]:
    if words.boundary == LETTER_BOUNDARY:
        return lambda word: words.closed(list(word))
    if not os.path.isfile(spm_model):
        raise FileNotFoundError(
            f"sentencepiece model {spm_model} does not exist; --words needs it for spelling: give "
            "--spm-model, or leave --words out"
        )
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=spm_model)
    return lambda word: processor.encode(word, out_type=str)


def write_lexicon(path: str, lexicon: Lexicon) -> None:
    with written_whole(path) as part, open(part, "w", encoding="utf-8") as file:
        for word in lexicon.words:
            file.writelines(f"{word}\t{' '.join(each)}\n" for each in lexicon.spellings[word])


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
                f"{where} is spelled with {told_apart(unknown[:MAX_NAMED], known)}, which the "
                f"dictionary lacks; its symbols: {' '.join(words.spoken[:40])}"
            )
        if words.boundary is None and words.of(spelling) != [word]:
            raise ManifestError(
                f"{where}: the labels have no boundary between words, so that they spell none; "
                "decode by a language model over labels (--lexicon-free)"
            )
        if not _spells(spelling, word, words):
            raise ManifestError(
                f"{where} is spelled {' '.join(spelling)}: fairseq-generate prints the labels, so "
                f"that they must say the word and its {words.boundary}"
            )
        if spelling not in spellings.setdefault(word, []):
            spellings[word].append(spelling)
    if not spellings:
        raise ManifestError(f"{path} has no words; a line is a word and its labels")
    return Lexicon(list(spellings), spellings)
