"""Masking while training: short utterances are masked less, all others as fairseq masks."""

import numpy as np
import pytest
import soundfile
import torch
from fairseq.models.wav2vec import wav2vec2
from helpers.commands import last_checkpoint, train
from helpers.corpora import SAMPLE_RATE, write_dictionary, write_split
from helpers.models import batch_of, build_model
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_speedup.frames import masking
from fairseq_speedup.lengths import padding_mask_of

SHIPPED = {"mask_prob": 0.65, "mask_length": 10, "min_masks": 2}  # of the time, in config/
SHORT, LONG = 8000, 48000  # samples: half a second has 7 frames at x3
FEWER_FRAMES = [
    {"downsample": "conv", "downsample_factor": 3},
    {"downsample": "signal", "downsample_factor": 2.67},
    {"downsample": "average", "downsample_factor": 3},
    {"downsample": "conv", "downsample_factors": [1, 3]},
    {"frontend": "fbank", "frontend_frame_ms": 40},
    {"frontend": "fbank", "frontend_frame_ms": 40, "downsample": "signal", "downsample_factor": 2},
    {"downsample": "conv", "downsample_factor": 3, "exit_layers": "0", "frame_pool": 2},
]


def masked(sizes, **options) -> list[np.ndarray]:
    """Mask of each utterance of a batch, of its valid frames; nothing else may be masked."""
    padding_mask = padding_mask_of(torch.tensor(sizes), max(sizes))
    mask = masking.compute_mask_indices(padding_mask.shape, padding_mask, **(SHIPPED | options))
    assert not mask[padding_mask.numpy()].any()
    return [row[:size] for row, size in zip(mask, sizes, strict=True)]


@pytest.mark.parametrize("size", range(1, 13))
def test_a_short_utterance_is_masked_less_and_not_as_a_whole(size):
    for _ in range(20):
        short, long = masked([size, 200])
        assert short.sum() <= 0.65 * size
        assert short.any() == (size >= 4)  # two spans of one frame, at least
        assert long.sum() >= 40  # not cut to what the short one has


def test_spans_that_cover_an_utterance_are_halved_until_a_frame_is_left(monkeypatch):
    lengths = []

    def fairseq(shape, padding_mask, prob, length, *kind, min_masks):
        lengths.append(length)
        if length > 2:
            raise ValueError("the entire sequence is masked")
        return np.arange(shape[1])[None] < length

    monkeypatch.setattr(masking, "fairseq_mask_indices", fairseq)
    mask = masking.compute_mask_indices((1, 9), None, 1.0, 10, min_masks=1)
    assert lengths == [9, 4, 2]
    assert mask.tolist() == [[True] * 2 + [False] * 7]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
    st.floats(0.01, 1.0),
    st.integers(1, 80),
    st.integers(0, 3),
    st.sampled_from(["static", "poisson"]),
)
def test_no_length_and_no_setting_ends_the_training(sizes, prob, length, least, kind):
    padding_mask = padding_mask_of(torch.tensor(sizes), max(sizes))
    mask = masking.compute_mask_indices(
        padding_mask.shape, padding_mask, prob, length, kind, 0.0, min_masks=least
    )
    assert (mask.sum(axis=1) < sizes).all()


def test_spans_of_random_length_may_all_be_empty():
    """As one draw in eight of two spans with a mean of one frame: fairseq then looks for the length
    of the second, and ends the training."""
    for _ in range(200):
        (row,) = masked([200], mask_prob=0.01, mask_length=1, mask_type="poisson")
        assert row.sum() < 20


def test_long_utterances_are_masked_by_fairseq_alone(monkeypatch):
    """Its arguments and its answer, unchanged."""
    padding_mask = padding_mask_of(torch.tensor([13, 90]), 90)
    calls, answer = [], np.arange(180).reshape(2, 90) % 7 == 0

    def fairseq(*args, **kwargs):
        calls.append((args, kwargs))
        return answer

    monkeypatch.setattr(masking, "fairseq_mask_indices", fairseq)
    options = {"no_overlap": False, "min_space": 1, "require_same_masks": True}
    found = masking.compute_mask_indices(
        (2, 90), padding_mask, 0.65, 10, "static", 0.0, min_masks=2, **options
    )
    assert np.array_equal(found, answer)
    ((args, kwargs),) = calls
    assert args[0] == (2, 90)
    assert torch.equal(args[1], padding_mask)
    assert args[2:] == (0.65, 10, "static", 0.0)
    assert kwargs == {"min_masks": 2, **options}


@pytest.mark.parametrize(
    ("channels", "prob", "share"), [(16, 0.1, 1 / 16), (64, 0.5, 0.5), (768, 0.02, 0.02)]
)
def test_channels_are_masked_at_their_share_also_in_a_narrow_model(channels, prob, share):
    """fairseq: "this should never happens" where it draws no span, or the whole is masked."""
    mask = masking.compute_mask_indices((2000, channels), None, prob, 64, "static", 0.0)
    assert not mask.all(axis=1).any()
    assert mask.mean() == pytest.approx(share, rel=0.2)


def training_model(w2v_path, **options):
    given = {"apply_mask": True, "mask_prob": 0.65, "mask_length": 10, "layerdrop": 0.0}
    return build_model(w2v_path, **(given | options)).train()


@pytest.mark.parametrize("options", FEWER_FRAMES, ids=str)
def test_a_clip_trains_whatever_makes_its_frames_fewer(pretrained, options):
    model = training_model(pretrained, mask_channel_prob=0.25, mask_channel_length=64, **options)
    w2v_model, masks = model.w2v_encoder.w2v_model, []
    w2v_model.mask_emb.data.fill_(100.0)

    transformer = model.w2v_encoder.transformer

    def watched(frames, lengths, padding_mask, **options):
        valid = ~padding_mask
        masks.append(((frames == 100).any(dim=2) & valid).sum(dim=1) / valid.sum(dim=1))
        return transformer(frames, lengths, padding_mask, **options)

    model.w2v_encoder.transformer = watched
    for update in range(5):
        model.set_num_updates(update)
        model(**batch_of([SHORT, LONG]))["encoder_out"].sum().backward()
    short, long = torch.stack(masks).T
    assert len(masks) == 5
    assert 0 < short.min() <= short.max() < 1
    assert 0.2 < long.mean() < 0.8


def test_stock_models_keep_fairseqs_masking(pretrained):
    stock = build_model(pretrained, stock=True, apply_mask=True).w2v_encoder.w2v_model
    assert stock.apply_mask.__func__ is wav2vec2.Wav2Vec2Model.apply_mask
    assert wav2vec2.compute_mask_indices is masking.fairseq_mask_indices


def test_one_clip_in_train_does_not_end_the_training(tmp_path, pretrained):
    data = tmp_path / "data"
    write_split(data, "train", 5)
    write_split(data, "valid", 3)
    write_dictionary(data)
    path = data / "audio/train-0.wav"
    waveform, _ = soundfile.read(path, dtype="float32")
    soundfile.write(path, waveform[:SHORT], SAMPLE_RATE)
    rows = (data / "train.tsv").read_text().splitlines()
    rows[1] = f"{path.name}\t{SHORT}"
    (data / "train.tsv").write_text("\n".join(rows) + "\n")
    labels = (data / "train.ltr").read_text().splitlines()
    (data / "train.ltr").write_text("\n".join(["E |", *labels[1:]]) + "\n")
    train(
        tmp_path / "out",
        data,
        pretrained,
        "model.apply_mask=true",
        "++model.mask_prob=0.65",
        "++model.mask_length=10",
        "++model.mask_channel_prob=0.0",
        "model.downsample=conv",
        "model.downsample_factor=3",
        "optimization.max_update=10",
        "task.allow_infeasible_ctc=true",
    )
    assert last_checkpoint(tmp_path / "out").exists()
