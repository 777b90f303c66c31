"""Beam searches on tables made by hand, and against every path there is."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_speedup.decoding.flashlight import LexiconFreeSearch, LexiconSearch
from fairseq_speedup.decoding.lexicon import Lexicon
from fairseq_speedup.decoding.options import DecodingOptions
from fairseq_speedup.decoding.prefix_beam import PrefixBeamSearch
from fairseq_speedup.decoding.words import Words

BLANK = 0
WORDS = Words(["<s>", "A", "B", "|"])
EVERYTHING = {"beam": 300, "beam_threshold": 1e6}


def table(rows) -> np.ndarray:
    """Log-probabilities (T, V) of rows of probabilities."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, dtype=np.float32))


def random_table(num_frames: int, seed: int, num_labels: int = 4, sharpness: float = 2.0):
    logits = sharpness * np.random.default_rng(seed).standard_normal((num_frames, num_labels))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def collapsed(path) -> tuple[int, ...]:
    return tuple(
        label for i, label in enumerate(path) if label != BLANK and (i == 0 or path[i - 1] != label)
    )


def every_path(log_probs):
    """(labels of the path, its log-probability)"""
    num_frames, num_labels = log_probs.shape
    for path in itertools.product(range(num_labels), repeat=num_frames):
        yield path, float(log_probs[np.arange(num_frames), path].astype(np.float64).sum())


def text(labels) -> tuple[str, ...]:
    return tuple(WORDS.of([WORDS.symbols[label] for label in labels]))


def summed(log_probs) -> dict[tuple[int, ...], float]:
    """log-probability of every label sequence, over its alignments"""
    scores = {}
    for path, score in every_path(log_probs):
        labels = collapsed(path)
        scores[labels] = np.logaddexp(scores.get(labels, -np.inf), score)
    return scores


def best_of_each_text(scores: dict) -> list[tuple[tuple[str, ...], float]]:
    """From scores of label sequences, best first"""
    best = {}
    for labels, score in scores.items():
        best[text(labels)] = max(score, best.get(text(labels), -np.inf))
    return sorted(best.items(), key=lambda item: -item[1])


@settings(max_examples=25, deadline=None)
@given(num_frames=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_a_wide_prefix_beam_finds_what_summing_over_every_path_finds(num_frames, seed):
    log_probs = random_table(num_frames, seed)
    (found,) = PrefixBeamSearch(WORDS, BLANK, nbest=5, **EVERYTHING).search([log_probs])
    expected = best_of_each_text(summed(log_probs))[:5]
    assert [each.score for each in found] == pytest.approx([s for _, s in expected], abs=1e-4)
    assert [text(collapsed(each.path)) for each in found] == [words for words, _ in expected]
    assert all(each.acoustic_score == each.score for each in found)


def test_a_batch_of_any_lengths_is_searched_as_each_alone():
    tables = [random_table(n, seed=n, sharpness=1) for n in (7, 30, 0, 1, 19)]
    search = PrefixBeamSearch(WORDS, BLANK, beam=6, nbest=3, beam_size_token=2)
    together = search.search(tables)
    for log_probs, found in zip(tables, together, strict=True):
        (alone,) = search.search([log_probs])
        assert [each.score for each in found] == pytest.approx([each.score for each in alone])
        assert [each.path.tolist() for each in found] == [each.path.tolist() for each in alone]


@settings(max_examples=25, deadline=None)
@given(num_frames=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_the_path_of_a_hypothesis_is_its_best_alignment(num_frames, seed):
    log_probs = random_table(num_frames, seed)
    best = {}
    for path, score in every_path(log_probs):
        best[collapsed(path)] = max(score, best.get(collapsed(path), -np.inf))
    (found,) = PrefixBeamSearch(WORDS, BLANK, nbest=20, **EVERYTHING).search([log_probs])
    for each in found:
        score = log_probs[np.arange(num_frames), each.path].sum()
        assert score == pytest.approx(best[collapsed(each.path)], abs=1e-4)


ARPA = """\\data\\
ngram 1=6
ngram 2=5

\\1-grams:
-2.0\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.7\tA\t-0.2
-0.9\tB\t-0.1
-1.2\tAB\t-0.4

\\2-grams:
-0.2\t<s> A
-0.3\tA B
-1.5\tB A
-0.4\tAB </s>
-0.6\t<s> AB

\\end\\
"""
LETTER_ARPA = ARPA.replace("AB", "|")
UNIGRAMS = {"<unk>": -2.0, "</s>": -0.9, "A": -0.7, "B": -0.9, "AB": -1.2}
BACKOFFS = {"<s>": -0.3, "A": -0.2, "B": -0.1, "AB": -0.4}
BIGRAMS = {
    ("<s>", "A"): -0.2,
    ("A", "B"): -0.3,
    ("B", "A"): -1.5,
    ("AB", "</s>"): -0.4,
    ("<s>", "AB"): -0.6,
}


def lm_score(tokens) -> float:
    """log10-probability by the table above, from <s> to </s>"""
    line = ["<s>", *tokens, "</s>"]
    return sum(
        BIGRAMS.get(pair, BACKOFFS.get(pair[0], 0.0) + UNIGRAMS.get(pair[1], -2.0))
        for pair in itertools.pairwise(line)
    )


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    path.write_text(ARPA)
    return str(path)


LEXICON = Lexicon(["A", "B", "AB"], {"A": [["A", "|"]], "B": [["B", "|"]], "AB": [["A", "B", "|"]]})


def lexicon_search(arpa="", lm_weight=0.0, nbest=4, beam=300, **options):
    options = DecodingOptions(**({"beam_threshold": 1e6} | options))
    return LexiconSearch(WORDS, BLANK, options, beam, nbest, lm_weight, LEXICON, arpa)


def best_alignments(log_probs, known) -> dict:
    """The best path's score of each line of known words; the end of a word at the end of the
    utterance needs no boundary."""
    scores = {}
    for path, score in every_path(log_probs):
        words = text(collapsed(path))
        if set(words) <= set(known):
            scores[words] = max(score, scores.get(words, -np.inf))
    return scores


@pytest.mark.parametrize("with_lm", [False, True])
@settings(max_examples=15, deadline=None)
@given(num_frames=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_a_wide_lexicon_search_finds_the_best_of_every_path(arpa, with_lm, num_frames, seed):
    log_probs = random_table(num_frames, seed)
    lm_weight, word_score = (0.8, -0.5) if with_lm else (0.0, 0.3)
    search = lexicon_search(arpa if with_lm else "", lm_weight, word_score=word_score)
    (found,) = search.search([log_probs])
    acoustic = best_alignments(log_probs, LEXICON.words)
    total = {
        words: score + lm_weight * lm_score(words) + word_score * len(words)
        for words, score in acoustic.items()
    }
    expected = sorted(total.items(), key=lambda item: -item[1])[:4]
    assert [each.score for each in found] == pytest.approx([s for _, s in expected], abs=1e-3)
    for each, (words, _) in zip(found, expected, strict=True):
        assert text(collapsed(each.path)) == words
        assert each.acoustic_score == pytest.approx(acoustic[words], abs=1e-3)
        assert each.num_words == len(words)
        assert each.lm_score == pytest.approx(lm_score(words) if with_lm else 0, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(num_frames=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_a_wide_lexicon_free_search_finds_the_best_of_every_path(
    tmp_path_factory, num_frames, seed
):
    path = tmp_path_factory.getbasetemp() / "letters.arpa"
    path.write_text(LETTER_ARPA)
    words = Words(["<s>", "<pad>", "A", "B"], unspoken=(1,))  # no boundary
    log_probs = random_table(num_frames, seed)
    log_probs[:, 1] = -np.inf
    options = DecodingOptions(beam_threshold=1e6)
    search = LexiconFreeSearch(words, BLANK, options, 300, 4, 0.7, str(path))
    (found,) = search.search([log_probs])
    total = {}
    for each, score in every_path(log_probs):
        labels = collapsed(each)
        score += 0.7 * lm_score([words.symbols[label] for label in labels])
        total[labels] = max(score, total.get(labels, -np.inf))
    expected = sorted(total.items(), key=lambda item: -item[1])[:4]
    expected = [(labels, score) for labels, score in expected if np.isfinite(score)]
    assert [each.score for each in found] == pytest.approx([s for _, s in expected], abs=1e-3)
    assert [collapsed(each.path) for each in found] == [labels for labels, _ in expected]


def test_best_path_best_beam_and_best_with_a_language_model_differ(arpa):
    log_probs = table([[0.4, 0.35, 0.25, 0.0], [0.4, 0.35, 0.25, 0.0]])
    # best path: blanks alone, 0.16. Summed: A 0.35 * 0.35 + 2 * 0.35 * 0.4 = 0.4025
    assert collapsed(log_probs.argmax(axis=1)) == ()
    ((best,),) = PrefixBeamSearch(WORDS, BLANK, beam=10).search([log_probs])
    assert text(collapsed(best.path)) == ("A",)
    assert best.score == pytest.approx(math.log(0.4025), abs=1e-5)
    # with a language model that likes AB best, log10 -1 to -1.2 of nothing and -1.3 of A
    ((best,),) = lexicon_search(arpa, lm_weight=5.0, nbest=1).search([log_probs])
    assert text(collapsed(best.path)) == ("AB",)


def test_a_narrow_beam_loses_the_best():
    log_probs = random_table(12, seed=1, sharpness=0.5)
    (wide,) = PrefixBeamSearch(WORDS, BLANK, beam=300).search([log_probs])
    (narrow,) = PrefixBeamSearch(WORDS, BLANK, beam=1).search([log_probs])
    assert narrow[0].score < wide[0].score
