"""Recordings in windows: the numbers of whole ones, no seam to be seen."""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from fairseq.data import Dictionary
from helpers.commands import generate_here
from helpers.corpora import SAMPLE_RATE, write_dictionary, write_split
from helpers.models import BLANK, build_model, write_finetuned
from hypothesis import given
from hypothesis import strategies as st

from fairseq_speedup.decoding.beam_search.decoder import BeamDecoder
from fairseq_speedup.decoding.beam_search.prefix_beam import PrefixBeamSearch
from fairseq_speedup.decoding.beam_search.search import Found, joined
from fairseq_speedup.decoding.generator import batch_of, encode
from fairseq_speedup.decoding.language.lexicon import Lexicon
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import DecodingOptions
from fairseq_speedup.decoding.windows import Windows, parts_of, seam_of
from fairseq_speedup.lengths import FrameGrid
from fairseq_speedup.models.lengths import model_lengths

SYMBOLS = ["<s>", "A", "B", "|"]
WORDS = Words(SYMBOLS)
REDUCTIONS = [
    {},
    {"downsample": "signal", "downsample_factor": 1.5},
    {"downsample": "conv", "downsample_factor": 3.0, "logit_upsample": 2},
    {"downsample": "average", "downsample_factor": 2.0},
    {"frontend": "fbank", "frontend_frame_ms": 40},
]


def windows_of(model, seconds: float, overlap: float, at_once: int = 1) -> Windows:
    lengths = model_lengths(model)
    grid, upsample = lengths.frame_grid(), lengths.logit_upsample
    return Windows.of_seconds(seconds, overlap, SAMPLE_RATE, grid, upsample, BLANK, at_once)


def without_attention(model):
    """A frame's numbers depend on what is near it alone."""
    for layer in model.w2v_encoder.w2v_model.encoder.layers:
        torch.nn.init.zeros_(layer.self_attn.out_proj.weight)
        torch.nn.init.zeros_(layer.self_attn.out_proj.bias)
    return model


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("options", REDUCTIONS, ids=str)
def test_windows_give_the_numbers_of_the_whole(pretrained, options, at_once):
    model = without_attention(build_model(pretrained, **options))
    recordings = [torch.randn(count) for count in (70001, 9000, 33333)]
    windows = windows_of(model, 1.5, 0.7, at_once)
    progress = []
    found = encode([model], batch_of(recordings), windows, progress.append)
    assert found.num_samples.tolist() == [70001, 9000, 33333]
    assert len(found.pieces) == sum(len(windows.spans(len(each))) for each in recordings) > 6
    assert sum(progress) == sum(map(len, recordings))
    for index, recording in enumerate(recordings):
        whole = encode([model], batch_of([recording]))
        (length,) = whole.lengths.tolist()
        assert found.lengths[index] == length
        torch.testing.assert_close(
            found.log_probs[:length, index], whole.log_probs[:, 0], atol=1e-4, rtol=1e-4
        )


@given(
    st.integers(1, 40000),
    st.sampled_from([320, 480, 960]),
    st.integers(1, 3),
    st.floats(0.1, 0.4),
)
def test_windows_cover_a_recording(num_samples, step, upsample, overlap):
    grid = FrameGrid().conv(400, step).split(upsample)
    windows = Windows.of_seconds(0.9, overlap, SAMPLE_RATE, grid, upsample, BLANK)
    spans = windows.spans(num_samples)
    assert (spans[0][0], spans[-1][1]) == (0, num_samples)
    for (start, end), (later, last) in itertools.pairwise(spans):
        assert (end - start, later - start) == (windows.size, windows.hop)
        assert last > end  # each goes on
    assert (windows.hop / grid.step) % upsample == 0  # whole frames


def table(labels: list[int]) -> torch.Tensor:
    """Log-probabilities (T, 4) that are nearly sure of a label for each frame."""
    return torch.nn.functional.one_hot(torch.tensor(labels), 4).float().add(0.01).log()


def test_a_seam_lies_where_both_are_sure_of_blank():
    #         A . . . | . . . . . . . . . . . B B
    before = [1, *[0] * 5, 3, *[0] * 16, 2, 2, 0, 0, 1, 1, 2, 2, 2, 2, 1, 1]
    # the same a frame later: a seam at a label would take it twice or lose it
    after = [0, *before[:-1]]
    seam = seam_of(table(before), table(after), BLANK)
    assert 7 + 5 < seam < 23 - 5
    parts = before[:seam] + after[seam:]
    assert [label for label, _ in itertools.groupby(parts)] == [
        label for label, _ in itertools.groupby(before)
    ]


def test_parts_are_cut_at_blanks():
    blank = np.full(1000, np.log(0.2))
    quiet = [160, 420, 630, 890]
    for start in quiet:
        blank[start : start + 30] = np.log(0.99)
    spans = parts_of(blank, 300)
    assert (spans[0][0], spans[-1][1]) == (0, 1000)
    assert len(spans) == len(quiet) + 1
    for (_, end), (begin, _), start in zip(spans, spans[1:], quiet, strict=False):
        assert end == begin
        assert start + 5 <= end <= start + 25
    assert parts_of(blank, 1000) == [(0, 1000)]


PIECES = Words(["<s>", "\u2581A", "B", "\u2581C"])


@pytest.mark.parametrize(
    ("words", "path", "whole"),
    [
        (WORDS, [0, 1, 0, 3, 0, 0, 2, 3], [1, 1, 0, 0, 1, 1, 1, 0]),
        (WORDS, [1, 2], [1, 0]),
        (PIECES, [0, 1, 0, 2, 0, 3, 0], [1, 1, 0, 0, 1, 1, 1]),
        (Words(["<s>", "A", "B"]), [1, 2, 0], [1, 1, 1]),
    ],
)
def test_where_words_are_whole(words, path, whole):
    assert words.whole_before(np.array(path), BLANK).tolist() == list(map(bool, whole))


def test_parts_are_cut_between_words_where_that_can_be():
    blank = np.log(np.array([0.9, 0.1, 0.99, 0.99, 0.99, 0.1, 0.8, 0.1] * 2))
    between = np.zeros(16, dtype=bool)
    between[[6, 12]] = True
    assert parts_of(blank, 8, between) == [(0, 6), (6, 12), (12, 16)]
    assert parts_of(blank, 8, ~between)[0][1] != 6
    assert parts_of(blank, 8, np.zeros(16, dtype=bool)) == parts_of(blank, 8)


@pytest.mark.parametrize("pause", [1, 2, 25])  # longest run of blanks between words, in frames
def test_in_parts_a_lexicon_finds_its_words_as_in_the_whole(pause):
    flashlight = pytest.importorskip("fairseq_speedup.decoding.beam_search.flashlight")
    pytest.importorskip("flashlight.lib.text")
    words = Words(["<s>", "<pad>", "</s>", "<unk>", "|", *"ABCDEFGH"], (1, 2, 3))
    dice = np.random.default_rng(0)
    said = {"".join(dice.choice(list("ABCDEFGH"), 4, replace=False)) for _ in range(30)}
    lexicon = Lexicon(sorted(said), {word: [[*word, "|"]] for word in said})
    options = DecodingOptions(ctc_decoder="beam")
    search = flashlight.LexiconSearch(words, BLANK, options, 20, 1, 0.0, lexicon, "")
    path, expected = [], dice.choice(lexicon.words, 150).tolist()
    for word in expected:
        for letter in word:
            path += [letter, *["<s>"] * dice.integers(0, 2)]
        path += ["|", *["<s>"] * dice.integers(0, pause + 1)]
    labels = torch.tensor([words.symbols.index(symbol) for symbol in path])
    log_probs = torch.full((len(path), 1, 13), np.log(0.04 / 12))
    log_probs[torch.arange(len(path)), 0, labels] = np.log(0.96)
    decoder = BeamDecoder(search, words, BLANK, longest=60)
    ((best,),) = decoder.decode(log_probs, torch.tensor([len(path)]))
    assert words.of([words.symbols[label] for label in best["tokens"].tolist()]) == expected


def found_of(**scores: float) -> list[Found]:
    """Hypotheses of a word each, by their labels: of A, B, and a boundary before a letter."""
    paths = {name: np.array([*map(SYMBOLS.index, name), BLANK]) for name in scores}
    return [Found(paths[name], s, s - 1, s / 10, 2) for name, s in scores.items()]


def joined_words(path) -> tuple[str, ...]:
    return WORDS.of_path(path, BLANK)


class Nbest:
    nbest, part_end, blank = 3, None, BLANK


def test_parts_follow_each_other_in_the_best_orders():
    parts = [found_of(A=-1, B=-2, AB=-7), found_of(B=-1, A=-1.5), found_of(A=-3)]
    best = joined(parts, Nbest, joined_words)
    assert [each.score for each in best] == [-5, -5.5, -6]
    assert best[0].path.tolist() == [1, 0, 2, 0, 1, 0]
    assert (best[0].acoustic_score, best[0].lm_score, best[0].num_words) == (-8, -0.5, 6)

    class EndsWords(Nbest):
        part_end = 3

    best = joined(parts, EndsWords, joined_words)
    assert best[0].path.tolist() == [1, 3, 2, 3, 1, 0]
    full = [[Found(np.array(path), 0, 0)] for path in ([1], [0, 2], [1], [2])]
    (best,) = joined(full, EndsWords, joined_words)  # a letter is no place where another frame is
    assert best.path.tolist() == [1, 3, 3, 3, 2]


def test_a_joined_list_has_each_text_once():
    class FourBest(Nbest):
        nbest = 4

    parts = [found_of(A=-1, AB=-1.2), found_of(BA=-1, A=-1.1, B=-3)]  # A BA and AB A are one text
    best = joined(parts, FourBest, joined_words)
    assert [joined_words(each.path) for each in best] == [("ABA",), ("AA",), ("ABBA",), ("AB",)]
    assert [each.score for each in best] == pytest.approx([-2, -2.1, -2.2, -4])


def test_a_long_utterance_is_searched_in_parts():
    labels = ([1] * 2 + [0] * 30 + [2] * 2 + [0] * 30) * 5
    log_probs = table(labels)[:, None].log_softmax(-1)
    search = PrefixBeamSearch(WORDS, BLANK, beam=10, nbest=2)
    whole = BeamDecoder(search, WORDS, BLANK).decode(log_probs, torch.tensor([len(labels)]))
    decoder = BeamDecoder(search, WORDS, BLANK, longest=70)
    parts = decoder.decode(log_probs, torch.tensor([len(labels)]))
    assert parts[0][0]["tokens"].tolist() == whole[0][0]["tokens"].tolist() == [1, 2] * 5
    assert parts[0][0]["frames"].tolist() == whole[0][0]["frames"].tolist()
    assert parts[0][0]["score"] == pytest.approx(whole[0][0]["score"], abs=0.1)
    assert len(parts[0]) == 2


def with_long_recording(data, seconds: float) -> None:
    rng = np.random.default_rng(0)
    count = int(seconds * SAMPLE_RATE)
    samples = rng.standard_normal(count).astype(np.float32) / 10
    soundfile.write(data / "audio/long.wav", samples, SAMPLE_RATE)
    with (data / "test.tsv").open("a") as file:
        file.write(f"long.wav\t{count}\n")
    with (data / "test.ltr").open("a") as file:
        file.write("E T |\n")


@pytest.mark.parametrize("decoder", [[], ["--ctc-decoder", "beam"]], ids=["greedy", "beam"])
def test_fairseq_generate_takes_a_long_recording(data, model, tmp_path, decoder):
    folder = tmp_path / "data"
    write_split(folder, "test", 7, seed=1)
    write_dictionary(folder)
    with_long_recording(folder, 11)
    options = ["--max-tokens", 80000, "--ctm", *decoder]
    with pytest.raises(ValueError, match="--window-seconds 30"):
        generate_here(folder, model, tmp_path / "refused", *options)
    options += ["--window-seconds", 4, "--window-overlap", 1]
    generate_here(folder, model, tmp_path / "results", *options)
    report = json.loads((tmp_path / "results/compute.json").read_text())
    assert report["num_windows"] == report["num_utterances"] + 3
    assert report["decoding"]["window_seconds"] == 4
    last = (tmp_path / "results/generate-test.ctm").read_text().splitlines()
    times = [list(map(float, line.split()[2:4])) for line in last if line.startswith("long")]
    assert times == sorted(times)
    assert sum(times[-1]) > 7
    # the others are what they are without
    generate_here(data, model, tmp_path / "short", "--batch-size", 8, *decoder)
    found, expected = (
        {
            line.split("\t")[0]: line.split("\t")[2]
            for line in (tmp_path / name / "generate-test.txt").read_text().splitlines()
            if line.startswith("H-")
        }
        for name in ("results", "short")
    )
    assert expected.items() <= found.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window-seconds", 1], "--window-seconds 1.0 is out of range; it must be 2 or more"),
        (["--window-seconds", "nan"], "--window-seconds nan is out of range"),
        (["--window-seconds", 8, "--window-overlap", 5], "it must be 0.5 to half"),
        (["--window-seconds", 8, "--window-overlap", 0], "it must be 0.5 to half"),
        (["--window-overlap", 3], "--window-overlap 3.0 needs --window-seconds"),
    ],
)
def test_windows_that_make_no_sense_are_refused(data, model, options, message):
    with pytest.raises(ValueError, match=message):
        generate_here(data, model, None, *options)


def test_windows_must_share_frames(data, pretrained, tmp_path):
    dictionary = Dictionary.load(str(data / "dict.ltr.txt"))
    reduced = {"downsample": "signal", "downsample_factor": 11.0}
    path = write_finetuned(tmp_path / "coarse.pt", pretrained, dictionary, **reduced)
    with pytest.raises(ValueError, match=r"--window-overlap 0\.5 is too short for this model"):
        generate_here(data, path, None, "--window-seconds", 8, "--window-overlap", 0.5)
