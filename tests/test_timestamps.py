"""Where frames lie in the waveform, and when words are said."""

from fractions import Fraction

import pytest
import torch
from helpers.models import build_model

from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.results.files import CtmFile, recording_names
from fairseq_speedup.decoding.results.timestamps import word_times
from fairseq_speedup.lengths import FrameGrid
from fairseq_speedup.models.lengths import model_lengths

WORDS = Words(["<s>", "A", "B", "|"])
GRID = FrameGrid().conv(400, 320)  # of wav2vec 2.0
REDUCTIONS = [
    {},
    {"downsample": "signal", "downsample_factor": 2.0},
    {"downsample": "signal", "downsample_factor": 2.5},
    {"downsample": "average", "downsample_factor": 2.0},
    {"downsample": "average", "downsample_factor": 3.0},
    {"downsample": "conv", "downsample_factor": 2.0},
    {"downsample": "conv", "downsample_factor": 3.0},
    {"frontend": "fbank"},
    {"frontend": "fbank", "frontend_frame_ms": 40},
]


@pytest.mark.parametrize("options", REDUCTIONS, ids=str)
def test_a_frame_is_centred_on_the_samples_that_it_depends_on(pretrained, options):
    encoder = build_model(pretrained, **options).w2v_encoder
    waveform = torch.randn(1, 16000, requires_grad=True)
    shorter, lengths = encoder.waveform_reduction(waveform, torch.tensor([16000]))
    if encoder.fbank is None:
        frames = encoder.w2v_model.feature_extractor(shorter)  # (B, C, T)
    else:
        frames, _ = encoder.fbank(shorter, lengths)
    middle = frames.size(2) // 2
    frames[0, :, middle].square().sum().backward()
    (touched,) = waveform.grad[0].nonzero(as_tuple=True)
    centre = (touched.min() + touched.max()).item() / 2
    grid = encoder.frame_grid()
    assert float(grid.first + middle * grid.step) == pytest.approx(centre, abs=1)
    # neighbours are as far apart as the grid says
    assert float(grid.step) == 320 * options.get("downsample_factor", 1) * (
        options.get("frontend_frame_ms", 20) // 20
    )


def test_pooled_frames_lie_where_they_were(pretrained):
    pooled = build_model(pretrained, frame_pool=2).w2v_encoder
    assert pooled.frame_grid() == build_model(pretrained).w2v_encoder.frame_grid() == GRID


def test_upsampled_logits_share_the_samples_of_their_frame(pretrained):
    grid = build_model(pretrained, logit_upsample=4).w2v_encoder.frame_grid()
    assert grid.start(0) == GRID.start(0)
    assert grid.start(4) == GRID.start(1)
    assert grid.step == 80


def test_a_stock_model_has_the_grid_of_its_cnn(pretrained):
    assert model_lengths(build_model(pretrained, stock=True)).frame_grid() == GRID
    assert GRID.first == Fraction(399, 2)
    assert GRID.start(0) == Fraction(79, 2)


def test_many_speeds_have_the_grid_of_the_one_chosen(pretrained):
    options = {"downsample": "conv", "downsample_factors": [1, 2, 3], "downsample_factor": 3.0}
    encoder = build_model(pretrained, **options).w2v_encoder
    single = {"downsample": "conv", "downsample_factor": 3.0}
    assert encoder.frame_grid() == build_model(pretrained, **single).w2v_encoder.frame_grid()


def hypothesis_of(*tokens):
    """From (label, first frame, frame after the last)"""
    labels = [WORDS.symbols.index(label) for label, _, _ in tokens]
    return {
        "tokens": torch.tensor(labels, dtype=torch.long),
        "frames": torch.tensor([[start, end] for _, start, end in tokens]).reshape(-1, 2),
    }


def test_word_times_by_hand():
    grid = FrameGrid(first=Fraction(160), step=Fraction(320))  # frame n: 20 n to 20 n + 20 ms
    hypothesis = hypothesis_of(
        ("A", 10, 12), ("B", 13, 14), ("|", 14, 15), ("A", 16, 17), ("|", 17, 18), ("B", 40, 41)
    )
    timed = word_times(hypothesis, WORDS, grid, num_samples=13600, sample_rate=16000)
    assert [each.word for each in timed] == ["AB", "A", "B"]
    times = [(each.start, each.end) for each in timed]
    # 200 to 280 ms, 320 to 340 ms, 800 to 820 ms; the gap of 40 ms is shared, the one of 460 ms
    # gives 80 ms to each; the utterance ends at 850 ms
    expected = [(0.12, 0.3), (0.3, 0.42), (0.72, 0.85)]
    for found, like in zip(times, expected, strict=True):
        assert found == pytest.approx(like)


def test_words_that_share_a_label_share_its_time():
    words = Words(["<s>", "\u2581A", "B\u2581A", "B"])
    hypothesis = {
        "tokens": torch.tensor([1, 2, 3]),
        "frames": torch.tensor([[0, 2], [10, 14], [20, 22]]),
    }
    grid = FrameGrid(first=Fraction(160), step=Fraction(320))
    first, second = word_times(hypothesis, words, grid, num_samples=16000, sample_rate=16000)
    assert (first.word, second.word) == ("AB", "AB")
    assert first.start == 0
    assert first.end == second.start == pytest.approx(0.24)  # the middle of 200 to 280 ms
    assert second.end == pytest.approx(0.44 + 0.08)


def test_times_stay_within_the_utterance():
    hypothesis = hypothesis_of(("A", 0, 1), ("|", 1, 2), ("B", 2, 3))
    first, last = word_times(hypothesis, WORDS, GRID, num_samples=1000, sample_rate=16000)
    assert first.start == 0
    assert first.end == last.start
    assert last.end == 1000 / 16000
    assert word_times(hypothesis_of(), WORDS, GRID, 1000, 16000) == []


def test_a_ctm_is_sorted_by_recording_when_it_is_closed(tmp_path):
    path = tmp_path / "words.ctm"
    ctm = CtmFile(str(path), WORDS, GRID, ["b/2", "a/1"], [16000, 16000], 16000)
    hypothesis = hypothesis_of(("A", 10, 12), ("|", 12, 13), ("B", 20, 21))
    ctm.add([0, 1], [[hypothesis], [hypothesis_of(("B", 5, 6))]])
    assert path.read_text().startswith("b/2 1 ")
    ctm.close()
    lines = [line.split() for line in path.read_text().splitlines()]
    assert [line[:2] + line[4:] for line in lines] == [
        ["a/1", "1", "B"],
        ["b/2", "1", "A"],
        ["b/2", "1", "B"],
    ]
    assert float(lines[1][2]) == pytest.approx((10 * 320 + 39.5) / 16000 - 0.08, abs=1e-3)
    assert float(lines[1][3]) == pytest.approx(0.04 + 0.16, abs=1e-3)


def test_recordings_need_names_of_their_own():
    assert recording_names(["x/my speech.flac", "y.wav"]) == ["x/my_speech", "y"]
    zipped = ["all.zip:40:900", "all.zip:980:900"]
    assert recording_names(zipped) == zipped
    with pytest.raises(ValueError, match="two recordings of the manifest are named y"):
        recording_names(["y.flac", "y.wav"])
