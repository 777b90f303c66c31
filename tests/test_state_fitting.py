"""Checkpoints read by models whose reductions are others than they were trained with."""

import pytest
import torch
from conftest import batch_of, build_model

from fairseq_speedup.checkpoints import CheckpointError


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
        ({"downsample": "conv", "downsample_factor": 2.0}, {}, "the checkpoint has .*conv.weight"),
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
