"""Checkpoints read by models whose reductions are others than they were trained with."""

import pytest
import torch
from helpers.models import batch_of, build_model, write_pretrained
from torch.testing import assert_close

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.speeds import Speed


@torch.no_grad()
def logits_of(model):
    return model(**batch_of([9000, 7000]))["encoder_out"]


def test_frame_pooling_without_training_averages_and_repeats(pretrained, caplog):
    plain = build_model(pretrained, seed=1)
    pooled = build_model(pretrained, seed=2, frame_pool=2)
    torch.nn.init.ones_(pooled.w2v_encoder.frame_reduction.upsamplings["2"].linear.weight)
    untrained = build_model(pretrained, seed=3, frame_pool=2)
    untrained.load_state_dict(plain.state_dict())
    assert "was not trained with this frame_pool" in caplog.text
    logits = logits_of(untrained)
    assert torch.equal(logits[0], logits[1])
    plain.load_state_dict(pooled.state_dict())  # and back: what is not wanted is left out


@pytest.mark.parametrize(
    ("trained", "asked", "words"),
    [
        ({}, {"downsample": "conv", "downsample_factor": 2.0}, "downsample, downsample_factor"),
        (
            {"downsample": "conv", "downsample_factor": 2.0},
            {},
            "the checkpoint has .*waveform_reduction",
        ),
        ({}, {"frontend": "fbank"}, "the model has w2v_encoder.fbank.*options frontend"),
        (
            {"frontend": "fbank"},
            {},
            "the checkpoint has .*fbank.*, which the model lacks|the model has .*feature_extractor",
        ),
        ({}, {"head": "mlp"}, "options head, head_dim, logit_upsample"),
        ({}, {"logit_upsample": 2}, r"proj.weight is \(14, 16\) in the checkpoint and \(28, 16\)"),
        ({"frontend": "fbank"}, {"frontend": "fbank", "frontend_frame_ms": 40}, "frontend"),
    ],
)
def test_weights_that_do_not_fit_name_the_option(pretrained, trained, asked, words):
    state = build_model(pretrained, **trained).state_dict()
    with pytest.raises(CheckpointError, match=words):
        build_model(pretrained, **asked).load_state_dict(state)


@pytest.mark.parametrize("given", [{"downsample_factors": []}, {"downsample_factors": [1.0, 2.0]}])
@pytest.mark.parametrize("factors", [[1.0, 2.0, 3.0], []])
def test_of_learned_convolutions_those_of_the_models_factors_are_taken(pretrained, factors, given):
    conv = {"downsample": "conv", "downsample_factor": 2.0}
    trained = build_model(pretrained, seed=1, **conv, downsample_factors=factors)
    for parameter in trained.w2v_encoder.waveform_reduction.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    found = build_model(pretrained, seed=2, **conv, **given)
    found.load_state_dict(trained.state_dict())
    for model in (trained, found):
        model.w2v_encoder.switch(Speed(2.0, 1, 2))
    assert torch.equal(logits_of(found), logits_of(trained))


def test_a_convolution_of_a_factor_that_was_not_trained_is_none(pretrained):
    conv = {"downsample": "conv", "downsample_factor": 2.0}
    state = build_model(pretrained, **conv, downsample_factors=[1.0, 2.0]).state_dict()
    third = build_model(pretrained, **conv, downsample_factors=[2.0, 3.0])
    with pytest.raises(CheckpointError, match=r"the model has .*reductions.3.*checkpoint lacks"):
        third.load_state_dict(state)


def test_a_learned_convolution_is_not_run_at_another_factor(pretrained):
    state = build_model(pretrained, downsample="conv", downsample_factor=2.0).state_dict()
    third = build_model(pretrained, downsample="conv", downsample_factor=3.0)
    with pytest.raises(CheckpointError, match=r"factor is 2 in the checkpoint and 3 in the model"):
        third.load_state_dict(state)
    del state["w2v_encoder.waveform_reduction.factor"]  # of a checkpoint before it was recorded
    build_model(pretrained, downsample="conv", downsample_factor=2.0).load_state_dict(state)


def test_pooling_that_is_lost_is_said(pretrained, caplog):
    state = build_model(pretrained, frame_pool=2).state_dict()
    build_model(pretrained).load_state_dict(state)
    assert "trained with another frame_pool" in caplog.text


def test_where_layers_are_cut_after_an_exit_its_head_decides(four_layers):
    whole = build_model(four_layers, exit_layers="1,2")
    cut = build_model(four_layers, seed=9, keep_layers="2")
    cut.load_state_dict(whole.state_dict())
    head = whole.w2v_encoder.exit_heads["1"]
    assert torch.equal(cut.w2v_encoder.proj.weight, head.weight)


def test_at_any_depth_of_many_the_last_head_decides(four_layers):
    options = {"depths": [2, 3, 4], "exit_layers": "1,2"}
    whole = build_model(four_layers, **options)
    kept = build_model(four_layers, seed=9, **options, keep_layers="2")
    kept.load_state_dict(whole.state_dict())
    whole.w2v_encoder.speeds.default = Speed(1.0, 1, 2)
    # where weights lie in memory decides the last bit of some products
    assert_close(logits_of(kept), logits_of(whole), atol=1e-6, rtol=0)
    assert torch.equal(kept.w2v_encoder.proj.weight, whole.w2v_encoder.proj.weight)


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("four") / "four.pt", encoder_layers=4)
