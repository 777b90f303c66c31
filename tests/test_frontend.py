"""The filterbank front-end: lengths as the CNN's, safe in a batch, trained to take its place."""

import math

import numpy as np
import pytest
import torch
from helpers.models import Labels, batch_of, build_model, write_pretrained
from hypothesis import given
from hypothesis import strategies as st

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.criterions.frontend_match import FrontEndMatchCriterion
from fairseq_speedup.frontend import FbankFrontEnd, FrontEndConfig
from fairseq_speedup.frontend.fbank import LogMel
from fairseq_speedup.lengths import conv_stack_length
from fairseq_speedup.macs import MacCounter

COUNTS = [9000, 4000, 7000, 5500, 8000]
WAV2VEC_CNN = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2


@given(st.integers(0, 300_000))
def test_at_20_ms_there_are_exactly_as_many_frames_as_the_cnn_gives(num_samples):
    front_end = FbankFrontEnd(FrontEndConfig(frontend="fbank"), 4)
    assert front_end.output_lengths(num_samples) == conv_stack_length(num_samples, WAV2VEC_CNN)


@given(st.integers(0, 300_000), st.sampled_from([40, 60, 80]))
def test_coarser_frames_cover_as_many_of_the_cnns(num_samples, frame_ms):
    front_end = FbankFrontEnd(FrontEndConfig(frontend="fbank", frontend_frame_ms=frame_ms), 4)
    cnn_frames = conv_stack_length(num_samples, WAV2VEC_CNN)
    assert front_end.output_lengths(num_samples) == math.ceil(cnn_frames / (frame_ms // 20))


@pytest.mark.parametrize("frame_ms", [20, 40, 60])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_needed_samples_is_the_fewest_that_give_the_frames(frame_ms, num_frames):
    front_end = FbankFrontEnd(FrontEndConfig(frontend="fbank", frontend_frame_ms=frame_ms), 4)
    needed = front_end.needed_samples(num_frames)
    assert front_end.output_lengths(needed) == num_frames
    assert front_end.output_lengths(needed - 1) == num_frames - 1


@pytest.mark.parametrize("frequency_hz", [300, 1000, 4000])
def test_a_tone_is_loudest_in_the_filter_around_its_frequency(frequency_hz):
    time_s = torch.arange(4000) / 16000
    energies = LogMel().energies(torch.sin(2 * math.pi * frequency_hz * time_s)[None])
    mel = 2595 * np.log10(1 + np.array([20, frequency_hz, 8000]) / 700)
    expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 81 - 1  # centres of 80 filters
    assert abs(int(energies[0].mean(0).argmax()) - expected) <= 1


def test_statistics_are_those_of_the_valid_frames_and_then_stay():
    front_end = FbankFrontEnd(FrontEndConfig(frontend="fbank"), 4)
    log_mel = front_end.log_mel
    batches = [batch_of(COUNTS, seed=seed)["source"] for seed in (0, 1)]
    frames = []
    for source in batches:
        front_end(source, torch.tensor(COUNTS))
        for i, count in enumerate(COUNTS):
            frames.append(log_mel.energies(source[i : i + 1, :count])[0])
    frames = torch.cat(frames)
    assert log_mel.num_frames.item() == len(frames)
    torch.testing.assert_close(log_mel.mean, frames.mean(0))
    normalised = log_mel.normalise(frames)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(80), atol=1e-3, rtol=0)
    before = log_mel.mean.clone()
    front_end.statistics_updates = 2
    front_end(3 * batches[0], torch.tensor(COUNTS))
    front_end.eval().statistics_updates = 200
    front_end(3 * batches[0], torch.tensor(COUNTS))
    assert torch.equal(log_mel.mean, before)


def test_statistics_stay_in_single_precision(pretrained):
    model = build_model(pretrained, frontend="fbank")
    model.w2v_encoder.fbank.log_mel.mean.fill_(1 / 3)
    model.half()
    assert model.w2v_encoder.fbank.log_mel.mean[0].item() == pytest.approx(1 / 3, abs=1e-8)
    assert model.w2v_encoder.fbank.linear.weight.dtype == torch.half
    assert model.state_dict()["w2v_encoder.fbank.log_mel.mean"].dtype == torch.float


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"frontend_frame_ms": 40}, {"frontend_frame_ms": 60}])
def test_an_utterance_gives_the_same_alone_as_in_a_batch(pretrained, options):
    model = build_model(pretrained, frontend="fbank", **options)
    net_input = batch_of(COUNTS)
    logits = model.get_logits(model(**net_input))
    assert logits.size(0) == model.w2v_encoder.output_lengths(max(COUNTS))
    for i, count in enumerate(COUNTS):
        alone = {"source": net_input["source"][i : i + 1, :count], "padding_mask": None}
        expected = model.get_logits(model(**alone))
        frames = expected.size(0)
        assert frames == model.w2v_encoder.output_lengths(count)
        torch.testing.assert_close(logits[:frames, i], expected[:, 0], atol=1e-5, rtol=1e-4)


def test_the_cnn_is_gone_and_its_macs_too(pretrained):
    model, whole = build_model(pretrained, frontend="fbank"), build_model(pretrained)
    assert not [name for name in model.state_dict() if "feature_extractor" in name]
    encoder = model.w2v_encoder
    ours, cnn = (MacCounter(each).count([16000]).sum() for each in (model, whole))
    assert ours.transformer == cnn.transformer
    frames_10_ms, frames = 98, encoder.frame_lengths(16000)
    assert ours.front_end == (
        frames_10_ms * (400 * 514 + 257 * 80)  # Fourier transform, Mel filters
        + frames * (80 * 8 * 3 + 8 * 8 * 3 + 8 * 8 + 8 * 16)  # convolutions, linear, projection
    )


@pytest.mark.parametrize("frame_ms", [20, 40])
@pytest.mark.parametrize("extractor_mode", ["layer_norm", "default"])
def test_matching_trains_the_front_end_alone_towards_the_cnn(tmp_path, frame_ms, extractor_mode):
    path = write_pretrained(tmp_path / "tiny.pt", extractor_mode=extractor_mode)
    options = {"frontend_frame_ms": frame_ms, "frontend_match_updates": 100}
    model = build_model(path, frontend="fbank", **options).train()
    criterion = FrontEndMatchCriterion(Labels())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sample = {"net_input": batch_of(COUNTS)}
    errors = []
    for update in range(30):
        model.set_num_updates(update)
        optimizer.zero_grad()
        loss, num_frames, log = criterion(model, sample)
        (loss / num_frames).backward()
        optimizer.step()
        errors.append(log["frontend_loss"] / log["sample_size"])
    assert num_frames == sum(model.w2v_encoder.frame_lengths(count) for count in COUNTS)
    assert errors[-1] < 0.8 * errors[0]
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if n.startswith("w2v_encoder.fbank.")}
    assert not model.w2v_encoder.end_matching()  # nothing that has learned is frozen now
    assert model.w2v_encoder.cnn_teacher is None


def test_matching_trains_a_learned_reduction_before_it_towards_the_whole_waveform(pretrained):
    options = {"downsample": "conv", "downsample_factor": 2.0, "frontend_match_updates": 9}
    model = build_model(pretrained, frontend="fbank", **options).train()
    output = model(**batch_of(COUNTS), match_frontend=True)
    output["matched"].square().sum().backward()
    assert model.w2v_encoder.waveform_reduction.conv.weight.grad.abs().max() > 0
    same_frames = build_model(pretrained, **options)
    expected = same_frames(**batch_of(COUNTS), match_frontend=True)["target"]
    torch.testing.assert_close(output["target"], expected)


def test_heads_alone_leave_the_statistics_alone(pretrained):
    model = build_model(pretrained, frontend="fbank", exit_layers="0", exit_heads_only=True)
    model.train()(**batch_of(COUNTS))
    assert model.w2v_encoder.fbank.log_mel.num_frames.item() == 0


def test_each_weight_is_saved_once(pretrained):
    names = build_model(pretrained, frontend="fbank").state_dict()
    assert not [name for name in names if "front_end" in name]


def test_the_target_is_what_the_transformer_was_given_before(pretrained):
    whole = build_model(pretrained).w2v_encoder.w2v_model
    given = []
    whole.post_extract_proj.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    net_input = batch_of([8000])
    whole.extract_features(**net_input)
    model = build_model(pretrained, frontend="fbank", frontend_match_updates=1)
    target = model(**net_input, match_frontend=True)["target"]
    torch.testing.assert_close(target, given[0])


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"downsample": "conv", "downsample_factor": 2.0},
        {"frame_pool": 2},
        {"exit_layers": "0", "exit_criterion": "layer"},
    ],
)
def test_base_models_do_not_depend_on_what_they_are_batched_with(tmp_path, options):
    path = write_pretrained(tmp_path / "base.pt", extractor_mode="default")
    model = build_model(path, **options)
    stock = build_model(path, padding="stock", **options)
    net_input = batch_of(COUNTS)
    logits, over_padding = (each.get_logits(each(**net_input)) for each in (model, stock))
    assert not torch.allclose(logits[:8, 1], over_padding[:8, 1], atol=1e-3)  # else shows nothing
    for i, count in enumerate(COUNTS):
        alone = {"source": net_input["source"][i : i + 1, :count], "padding_mask": None}
        expected = model.get_logits(model(**alone))
        frames = expected.size(0)
        torch.testing.assert_close(logits[:frames, i], expected[:, 0], atol=1e-5, rtol=1e-4)
        assert torch.equal(expected, stock.get_logits(stock(**alone)))


@pytest.fixture
def without_cnn(tmp_path):
    path = write_pretrained(tmp_path / "tiny.pt")
    state = torch.load(path)
    state["model"] = {k: v for k, v in state["model"].items() if "feature_extractor" not in k}
    torch.save(state, path)
    return path


def test_an_encoder_without_its_cnn_can_be_used_with_filterbanks(without_cnn):
    model = build_model(without_cnn, frontend="fbank")
    assert model(**batch_of([8000]))["encoder_out"].size(0) == 24


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "was saved without its CNN, which frontend=cnn needs: set frontend=fbank"),
        (
            {"frontend": "fbank", "frontend_match_updates": 5},
            "without its CNN, which frontend_match_updates=5.*set frontend_match_updates=0",
        ),
    ],
)
def test_an_encoder_without_its_cnn_is_refused_where_it_is_needed(without_cnn, options, words):
    with pytest.raises(CheckpointError, match=words):
        build_model(without_cnn, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frontend": "mfcc"}, "unknown frontend='mfcc'; valid values: cnn, fbank"),
        ({"frontend_frame_ms": 40}, "frontend_frame_ms=40 needs frontend=fbank"),
        (
            {"frontend_match_updates": 5},
            "frontend_match_updates=5 needs frontend=fbank, or downsample=signal, conv or average",
        ),
        ({"padding": "none"}, "unknown padding='none'; valid values: masked, stock"),
        ({"frontend": "fbank", "frontend_frame_ms": 30}, "must be a multiple of 20"),
        ({"frontend": "fbank", "frontend_frame_ms": 0}, "must be a multiple of 20"),
        ({"frontend": "fbank", "frontend_match_updates": -1}, "it must be 0 or more"),
        (
            {
                "frontend": "fbank",
                "frontend_match_updates": 5,
                "exit_layers": "0",
                "exit_heads_only": True,
            },
            "frontend_match_updates=5 trains the front-end, which exit_heads_only=true freezes",
        ),
        (
            {"frontend": "fbank", "frontend_match_updates": 5, "no_pretrained_weights": True},
            "needs the pretrained CNN's weights",
        ),
    ],
)
def test_front_ends_that_mean_nothing_are_refused_in_words(pretrained, options, words):
    with pytest.raises(ValueError, match=words):
        build_model(pretrained, **options)
