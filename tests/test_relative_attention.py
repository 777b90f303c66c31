"""Relative positions: the table of distances, and that it is learned however one trains."""

import threading

import pytest
import torch
from helpers.models import batch_of, build_model
from torch import nn

from fairseq_speedup.transformer.relative_attention import (
    RelativePositions,
    bucket_of,
    use_relative_positions,
)


def with_relative_positions(path, **options):
    model = build_model(path, layerdrop=0.0, **options)
    torch.manual_seed(5)
    use_relative_positions(model.w2v_encoder.w2v_model.encoder, 16, 20, gated=True)
    nn.init.normal_(model.w2v_encoder.w2v_model.encoder.relative_attention_bias.weight)
    return model


@pytest.mark.parametrize("num_frames", [1, 2, 7, 50])
def test_each_pair_of_frames_has_the_bias_of_its_distance(num_frames):
    positions = RelativePositions(nn.Embedding(16, 3), 20)
    found = positions.bias(num_frames)
    frame = torch.arange(num_frames)
    bucket = bucket_of(frame[None, :] - frame[:, None], 16, 20)
    assert torch.equal(found, positions.embedding.weight[bucket].permute(2, 0, 1))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_bias_is_learned_in_every_update(pretrained, checkpointed):
    model = with_relative_positions(pretrained, checkpoint_activations=checkpointed).train()
    plain = with_relative_positions(pretrained).train()
    for count in (9000, 7000):
        gradients = []
        for each in (model, plain):
            each.zero_grad()
            each(**batch_of([count, 6000]))["encoder_out"].square().mean().backward()
            bias = each.w2v_encoder.w2v_model.encoder.relative_attention_bias.weight
            gradients.append(bias.grad.clone())
        assert gradients[0].abs().sum() > 0
        torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_it_is_looked_up_once_for_all_layers_and_then_forgotten(pretrained, monkeypatch):
    model = with_relative_positions(pretrained)
    encoder = model.w2v_encoder.w2v_model.encoder
    times, look_up = [], RelativePositions._look_up

    def counted(self, num_frames):
        times.append(num_frames)
        return look_up(self, num_frames)

    monkeypatch.setattr(RelativePositions, "_look_up", counted)
    before = model(**batch_of([9000]))["encoder_out"]
    assert len(times) == 1 and len(encoder.layers) > 1
    assert encoder.relative_positions._shared == {}
    encoder.relative_attention_bias.weight += 1.0 * torch.arange(16)[:, None]
    assert not torch.allclose(model(**batch_of([9000]))["encoder_out"], before)


def test_a_thread_shares_with_no_other(monkeypatch):
    """What one has looked up stays until it is done, whenever others are."""
    positions = RelativePositions(nn.Embedding(16, 3), 20)
    long, short = (positions.bias(num_frames) for num_frames in (50, 7))
    found, begun, ended = [], threading.Event(), threading.Event()

    @torch.no_grad()
    def other():
        with positions.shared():
            found.append(positions.bias(50))
            begun.set()
            ended.wait(30)
            found.append(positions.bias(50))

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(30)
    with torch.no_grad(), positions.shared():
        found.append(positions.bias(7))
    ended.set()
    thread.join()
    assert all(map(torch.equal, found, [long, short, long]))
