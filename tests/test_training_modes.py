"""Activation checkpointing and mixed precision, with reductions."""

import pytest
import torch
from helpers.commands import generate_here, last_checkpoint, train
from helpers.models import batch_of, build_model, write_pretrained
from helpers.results import check_results

COUNTS = [9000, 16000, 7001]
REDUCED = [
    {},
    {"downsample": "conv", "downsample_factor": 2.0, "logit_upsample": 2},
    {"exit_layers": "1,2", "frame_pool": 2},
    {"merge_ratio": 0.2, "keep_layers": "0,1,3"},
    {"frontend": "fbank", "head": "bilstm", "head_dim": 6},
]


@pytest.fixture(scope="module")
def pretrained_deep(tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("deep") / "deep.pt", encoder_layers=4)


def gradients(w2v_path, options) -> dict[str, torch.Tensor]:
    model = build_model(w2v_path, layerdrop=0.0, apply_mask=False, **options)
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.set_num_updates(10)
    net_output = model(**batch_of(COUNTS))
    loss = net_output["encoder_out"].float().square().sum()
    for logits in net_output.get("exit_logits", {}).values():
        loss = loss + logits.square().sum()
    loss.backward()
    named = model.named_parameters()
    return {name: each.grad for name, each in named if each.grad is not None}


@pytest.mark.parametrize("options", REDUCED, ids=str)
def test_checkpointed_activations_give_the_same_gradients(pretrained_deep, options):
    expected = gradients(pretrained_deep, options)
    found = gradients(pretrained_deep, {**options, "checkpoint_activations": True})
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name, atol=1e-5, rtol=1e-4)


def test_checkpointing_recomputes(pretrained_deep):
    """Else the test above shows nothing."""
    model = build_model(pretrained_deep, checkpoint_activations=True, exit_layers="1").train()
    layer = model.w2v_encoder.w2v_model.encoder.layers[0]
    calls = []
    layer.fc1.register_forward_hook(lambda *unused: calls.append(1))
    net_output = model(**batch_of(COUNTS))
    net_output["encoder_out"].sum().backward()
    assert len(calls) == 2


def test_bfloat16_trains_a_reduced_model(tmp_path, corpus, pretrained):
    options = ["model.downsample=conv", "model.downsample_factor=2", "model.logit_upsample=2"]
    train(tmp_path, corpus, pretrained, *options, "common.bf16=true")
    weights = torch.load(last_checkpoint(tmp_path))["model"].values()
    assert all(torch.equal(each, each.bfloat16().to(each)) for each in weights)
    generate_here(corpus, last_checkpoint(tmp_path), tmp_path / "results")
    check_results(tmp_path / "results", corpus)
