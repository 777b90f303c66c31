"""Token merging: exact where it is off, and the same alone as in a batch where it is on."""

import math
from fractions import Fraction

import pytest
import torch
from helpers.models import batch_of, build_model, check_alone, write_pretrained
from hypothesis import given
from hypothesis import strategies as st

from fairseq_speedup.lengths import merged_length
from fairseq_speedup.transformer.frame_batch import FrameBatch, merge_frames
from fairseq_speedup.transformer.token_merging import (
    TokenMerging,
    TokenMergingConfig,
    parse_merge_layers,
)

COUNTS = [9000, 4000, 7000, 5500, 8000]


@pytest.fixture(scope="module", params=[False, True], ids=["post_norm", "pre_norm"])
def six_layers(tmp_path_factory, request):
    path = tmp_path_factory.mktemp("six") / "six.pt"
    return write_pretrained(path, encoder_layers=6, layer_norm_first=request.param)


@torch.no_grad()
def run(model, net_input):
    output = model(**net_input)
    return model.get_logits(output), output


@given(st.integers(1, 2000), st.fractions(0, Fraction(1, 2), max_denominator=50), st.booleans())
def test_the_length_formula_counts_pairs(length, ratio, start):
    pairs = len([t for t in range(start, length - 1, 2) if t + 1 < length])
    assert merged_length(length, ratio, start) == length - min(math.floor(ratio * length), pairs)


def test_frames_that_merge_are_the_mean_of_what_they_stand_for():
    hidden = torch.tensor([[1.0], [2.0], [6.0], [5.0]])[:, None, :]  # (T, 1, 1)
    sizes = torch.tensor([1.0, 3.0, 1.0, 1.0])[:, None]
    merged, sizes = merge_frames(hidden, sizes, torch.tensor([[0], [0], [1], [2]]))
    assert merged[:3].flatten().tolist() == [(1 + 3 * 2) / 4, 6, 5]
    assert sizes[:3].flatten().tolist() == [4, 1, 1]


def test_the_most_similar_pairs_merge_and_are_restored_as_copies():
    angle = torch.tensor([0.0, 90, 100, 130, 131, 200, 290, 10]).deg2rad()
    hidden = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None, :]  # (T, 1, C)
    merging = TokenMerging([0, 1], TokenMergingConfig(merge_ratio=0.25))
    batch = begins(hidden)
    # pairs from frame 0: (0, 1) 90 degrees, (2, 3) 30, (4, 5) 69, (6, 7) 80: the best two merge
    merging.after(0, batch)
    once = batch.hidden
    assert batch.lengths.tolist() == [6]
    assert batch.index_now.tolist() == [[0, 1, 2, 2, 3, 3, 4, 5]]
    torch.testing.assert_close(once[2], (hidden[2] + hidden[3]) / 2)
    # pairs from frame 1, of now 0, 90, 115, 165, 290, 10 degrees: (90, 115) and (165, 290)
    merging.after(1, batch)
    twice = batch.hidden
    assert batch.lengths.tolist() == [5]
    assert batch.index_now.tolist() == [[0, 1, 1, 1, 2, 2, 3, 4]]
    torch.testing.assert_close(twice[1], (hidden[1] + hidden[2] + hidden[3]) / 3)
    restored = batch.unmerged()
    assert restored.shape == hidden.shape
    for frame, index in enumerate(batch.index_now[0]):
        assert torch.equal(restored[frame], twice[index])


def begins(hidden):
    """A batch of one utterance (T, 1, C)."""
    lengths = torch.tensor([len(hidden)])
    return FrameBatch(hidden, lengths, num_layers=3, frame_lengths=lengths, num_frames=len(hidden))


def test_a_threshold_keeps_frames_that_differ():
    angle = torch.tensor([0.0, 10, 40, 80]).deg2rad()
    hidden = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None, :]
    cfg = TokenMergingConfig(merge_ratio=0.5, merge_threshold=math.cos(math.radians(20)))
    batch = begins(hidden)
    TokenMerging([0], cfg).after(0, batch)
    assert batch.index_now.tolist() == [[0, 0, 1, 2]]


def test_ratio_0_is_exact(six_layers):
    plain, merging = build_model(six_layers, stock=True), build_model(six_layers, merge_ratio=0.0)
    net_input = batch_of(COUNTS)
    assert torch.equal(run(plain, net_input)[0], run(merging, net_input)[0])


def test_a_ratio_too_small_for_any_pair_changes_nothing(six_layers):
    plain, merging = build_model(six_layers), build_model(six_layers, merge_ratio=0.001)
    net_input = batch_of(COUNTS)
    torch.testing.assert_close(run(merging, net_input)[0], run(plain, net_input)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"merge_ratio": 0.1},
        {"merge_ratio": 0.5, "merge_layers": "1,2"},
        {"merge_ratio": 0.5, "merge_threshold": 0.6},
        {"merge_ratio": 0.2, "frame_pool": 2},
        {"merge_ratio": 0.2, "exit_layers": "2,4", "exit_criterion": "layer", "exit_threshold": 4},
    ],
)
def test_an_utterance_gives_the_same_alone_as_in_a_batch(six_layers, options):
    model = build_model(six_layers, **options)
    net_input = batch_of(COUNTS)
    logits, output = run(model, net_input)
    layer_frames = output["layer_frames"]
    assert (layer_frames[:, 3] < layer_frames[:, 0]).all()  # else the test shows nothing
    check_alone(model, net_input, logits, layer_frames)


def test_layers_are_given_as_many_frames_as_they_say(six_layers):
    model = build_model(six_layers, merge_ratio=0.25, merge_layers="0,3")
    seen = []
    for layer in model.w2v_encoder.w2v_model.encoder.layers:
        layer.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0].size(0)))
    (frames,) = run(model, batch_of([8000]))[1]["layer_frames"].tolist()
    assert frames == seen
    first = model.w2v_encoder.frame_lengths(8000)
    second = first - first // 4
    assert frames == [first, *[second] * 3, *[second - second // 4] * 2]


def test_merging_is_trained_through(six_layers):
    model = build_model(six_layers, merge_ratio=0.3, layerdrop=0.5).train()
    for _ in range(5):  # the last layer may be dropped: frames are restored all the same
        logits, _ = run(model, batch_of([9000, 7000]))
        assert logits.size(0) == model.w2v_encoder.output_lengths(9000)
    model(**batch_of([9000, 7000]))["encoder_out"].square().sum().backward()
    weight = model.w2v_encoder.w2v_model.post_extract_proj.weight
    assert weight.grad.abs().sum() > 0


def test_feasibility_knows_that_merged_frames_are_copies(six_layers):
    model = build_model(six_layers, merge_ratio=0.5, merge_layers="0,1", logit_upsample=2)
    frames = model.w2v_encoder.frame_lengths(8000)
    left = frames - frames // 2
    left -= min(left // 2, (left - 1) // 2)
    assert model.w2v_encoder.ctc_lengths(8000) == 2 * left
    assert model.w2v_encoder.output_lengths(8000) == 2 * frames


def test_feasibility_of_many_poolings_is_that_of_the_largest_where_frames_merge(six_layers):
    options = {"merge_ratio": 0.5, "merge_layers": "0", "frame_pools": [1, 3]}
    encoder = build_model(six_layers, **options).w2v_encoder
    (num_samples,) = (n for n in range(8000, 9000, 320) if encoder.frame_lengths(n) == 25)
    # 9 windows of 3, of which 4 pairs merge: 5 windows stand for 3 labels each
    assert encoder.ctc_lengths(num_samples) == 5 * 3
    # not pooled, 12 pairs of frames merge
    assert encoder.ctc_lengths(num_samples, any_speed=False) == 13


@pytest.mark.parametrize(
    ("merge_layers", "kept", "layers"),
    [("all", [0, 1, 2], [0, 1]), ("all", [1, 5], [1]), ("1", [0, 1, 4], [1])],
)
def test_layers_that_are_named(merge_layers, kept, layers):
    assert parse_merge_layers(merge_layers, kept) == layers


@pytest.mark.parametrize("merge_layers", ["all", "0,1"])
def test_the_least_depth_of_many_may_merge_nothing(six_layers, merge_layers):
    options = {"depths": [1, 6], "merge_ratio": 0.3, "merge_layers": merge_layers}
    shallow = build_model(six_layers, keep_layers="1", **options)
    plain = build_model(six_layers, keep_layers="1")
    plain.load_state_dict(shallow.state_dict())
    found, expected = (run(each, batch_of([8000])) for each in (shallow, plain))
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"merge_ratio": 0.6}, "merge_ratio=0.6 is out of range; it must be 0 to 0.5"),
        ({"merge_ratio": -0.1}, "merge_ratio=-0.1 is out of range"),
        ({"merge_ratio": float("nan")}, "merge_ratio=nan is out of range"),
        ({"merge_ratio": 0.1, "merge_threshold": 1.5}, "merge_threshold=1.5.*cosine similarity"),
        ({"merge_ratio": 0.1, "merge_threshold": float("nan")}, "merge_threshold=nan is out"),
        ({"merge_threshold": 0.5}, "merge_threshold=0.5 needs merge_ratio"),
        ({"merge_layers": "1"}, "merge_layers=1 needs merge_ratio"),
        ({"merge_ratio": 0.1, "merge_layers": "5"}, "merge_layers=5: frames cannot merge after"),
        ({"merge_ratio": 0.1, "merge_layers": "1,1"}, "repeats a layer"),
        ({"merge_ratio": 0.1, "keep_layers": "0,2", "merge_layers": "1"}, "allows 0 "),
        ({"merge_ratio": 0.1, "keep_layers": "1"}, "merge_ratio needs 2 layers or more"),
    ],
)
def test_merging_that_means_nothing_is_refused_in_words(six_layers, options, words):
    with pytest.raises(ValueError, match=words):
        build_model(six_layers, **options)


def test_many_large_frames_are_averaged_without_overflow():
    hidden = torch.full((2, 1, 1), 300.0, dtype=torch.half)
    merged, _ = merge_frames(hidden, torch.tensor([[200.0], [100.0]]), torch.tensor([[0], [0]]))
    assert merged[0].item() == 300


def test_merging_by_similarity_alone_is_not_foretold_to_starve_ctc(six_layers):
    model = build_model(six_layers, merge_ratio=0.5, merge_threshold=0.9)
    assert model.w2v_encoder.ctc_lengths(8000) == model.w2v_encoder.output_lengths(8000)
