"""Beam searches on tables made by hand, and against every path there is."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_speedup.decoding.beam_search.decoder import BeamDecoder
from fairseq_speedup.decoding.beam_search.emissions import Emission, skip_blanks
from fairseq_speedup.decoding.beam_search.flashlight import LexiconFreeSearch, LexiconSearch
from fairseq_speedup.decoding.beam_search.prefix_beam import PrefixBeamSearch
from fairseq_speedup.decoding.greedy import GreedyDecoder
from fairseq_speedup.decoding.language.lexicon import Lexicon
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import DecodingOptions

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


def test_token_pruning_leaves_the_likeliest_labels():
    log_probs = table([[0.1, 0.5, 0.3, 0.1]])
    (found,) = PrefixBeamSearch(WORDS, BLANK, beam=10, nbest=10, beam_size_token=1).search(
        [log_probs]
    )
    assert [text(collapsed(each.path)) for each in found] == [("A",), ()]


def test_the_beam_threshold_drops_what_is_far_behind():
    log_probs = table([[0.2, 0.7, 0.1, 0.0]])
    (found,) = PrefixBeamSearch(WORDS, BLANK, beam=10, nbest=10, beam_threshold=1.5).search(
        [log_probs]
    )
    assert [text(collapsed(each.path)) for each in found] == [("A",), ()]


def test_a_word_cut_off_by_the_end_is_not_found():
    log_probs = table([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    lexicon = Lexicon(["A", "BA"], {"A": [["A", "|"]], "BA": [["B", "A", "|"]]})
    search = LexiconSearch(WORDS, BLANK, DecodingOptions(), 10, 1, 0.0, lexicon, "")
    ((best,),) = search.search([log_probs])
    assert text(collapsed(best.path)) == ("A",)


def test_scores_add_up_with_a_score_for_silence(arpa):
    search = lexicon_search(arpa, lm_weight=1.5, word_score=0.7, sil_score=-0.3)
    (found,) = search.search([random_table(20, seed=3, sharpness=1)])
    assert len(found) == 4
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    for each in found:
        silence = int((each.path == WORDS.boundary_label).sum())
        parts = 1.5 * each.lm_score + 0.7 * each.num_words - 0.3 * silence
        assert each.score == pytest.approx(each.acoustic_score + parts)
        assert each.lm_score == pytest.approx(lm_score(text(collapsed(each.path))), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(num_frames=st.integers(1, 7), seed=st.integers(0, 10**6))
def test_skipping_blanks_is_taking_sure_ones_for_blank(num_frames, seed):
    log_probs = random_table(num_frames, seed, sharpness=3)
    whole = Emission(log_probs, np.arange(num_frames), num_frames)
    skipped = skip_blanks(whole, BLANK, threshold=0.6)
    sure = log_probs[:, BLANK] >= np.log(0.6)
    only_blank = log_probs.copy()
    only_blank[np.ix_(sure, np.arange(4) != BLANK)] = -np.inf
    search = PrefixBeamSearch(WORDS, BLANK, nbest=5, **EVERYTHING)
    expected, found = search.search([only_blank, skipped.log_probs])
    scores = [each.score + skipped.skipped_score for each in found]
    assert scores == pytest.approx([each.score for each in expected], abs=1e-4)
    for each, like in zip(found, expected, strict=True):
        assert collapsed(each.path) == collapsed(like.path)
    runs = np.flatnonzero(np.diff(np.append(0, sure)) == 1)
    assert len(skipped.frames) == (~sure).sum() + len(runs)


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.999])
def test_a_blank_just_below_the_threshold_is_searched(threshold):
    above, below = threshold + 1e-4, threshold - 1e-4
    probabilities = [above, above, below, below, above, below]
    log_probs = table([[blank, 1 - blank, 0, 0] for blank in probabilities])
    found = skip_blanks(Emission(log_probs.copy(), np.arange(6), 6), BLANK, threshold)
    assert found.frames.tolist() == [0, 2, 3, 4, 5]  # one of the first two, which are a run
    spoken = np.isfinite(found.log_probs[:, 1])
    assert spoken.tolist() == [False, True, True, False, True]
    assert found.skipped_score == pytest.approx(math.log(above), abs=1e-6)


def test_a_decoder_gives_frames_of_the_whole_utterance():
    probabilities = [[0.9, 0.1, 0, 0]] * 4 + [[0.1, 0.8, 0.1, 0]] * 2 + [[0.9, 0.1, 0, 0]] * 5
    log_probs = torch.from_numpy(table([*probabilities, [0, 0, 0, 1]]))[:, None]
    for threshold in (1.0, 0.85):
        search = PrefixBeamSearch(WORDS, BLANK, beam=10)
        decoder = BeamDecoder(search, WORDS, BLANK, threshold)
        ((best,),) = decoder.decode(log_probs, torch.tensor([12]))
        assert best["frames"].tolist() == [[4, 6], [11, 12]]
        assert best["alignment"] == [(4, 0), (11, 1)]
        greedy = GreedyDecoder(BLANK).decode(log_probs, torch.tensor([12]))[0][0]
        torch.testing.assert_close(best["positional_scores"], greedy["positional_scores"])
    assert decoder.report()["share_of_frames_searched"] == pytest.approx(5 / 12, abs=1e-4)


def test_searching_elsewhere_gives_the_same(arpa):
    log_probs = torch.stack([torch.from_numpy(random_table(25, seed)) for seed in range(5)], dim=1)
    lengths = torch.tensor([25, 3, 17, 9, 1])
    here = BeamDecoder(lexicon_search(arpa, 0.5), WORDS, BLANK)
    elsewhere = BeamDecoder(lexicon_search(arpa, 0.5), WORDS, BLANK, num_workers=2)
    expected = here.decode(log_probs, lengths)
    batch = elsewhere.start(log_probs, lengths)
    found = batch.hypotheses()
    assert batch.seconds_elsewhere > 0
    for each, like in zip(found, expected, strict=True):
        assert [h["score"] for h in each] == [h["score"] for h in like]
        assert [h["tokens"].tolist() for h in each] == [h["tokens"].tolist() for h in like]


@pytest.mark.parametrize("num_frames", [0, 1, 5])
@pytest.mark.parametrize("kind", ["prefix", "lexicon", "lexicon-free"])
def test_a_search_that_finds_nothing_gives_an_empty_hypothesis(arpa, kind, num_frames):
    if kind == "prefix":
        search = PrefixBeamSearch(WORDS, BLANK, beam=5)
    elif kind == "lexicon":
        search = lexicon_search(arpa, 0.5)
    else:
        search = LexiconFreeSearch(WORDS, BLANK, DecodingOptions(), 5, 4, 0.5, arpa)
    ((best, *_),) = search.search([np.full((num_frames, 4), -np.inf, dtype=np.float32)])
    assert best.path.tolist() == [BLANK] * num_frames
    assert best.score == best.acoustic_score == -np.inf or num_frames == 0


def test_the_callers_log_probabilities_stay(arpa):
    words = Words(["<s>", "<pad>", "A"], unspoken=(1,))
    log_probs = torch.tensor([[[0.1, 0.8, 0.1]], [[0.5, 0.2, 0.3]]]).log()  # of a batch of one
    before = log_probs.clone()
    BeamDecoder(PrefixBeamSearch(words, BLANK, beam=5), words, BLANK, 0.6).decode(
        log_probs, torch.tensor([2])
    )
    assert torch.equal(log_probs, before)


def test_labels_that_no_transcript_has_are_never_found():
    words = Words(["<s>", "<pad>", "A"], unspoken=(1,))
    log_probs = torch.tensor([[[0.1, 0.8, 0.1]]]).log()
    decoder = BeamDecoder(PrefixBeamSearch(words, BLANK, beam=5, nbest=5), words, BLANK)
    (nbest,) = decoder.decode(log_probs, torch.tensor([1]))
    assert sorted(each["tokens"].tolist() for each in nbest) == [[], [2]]
