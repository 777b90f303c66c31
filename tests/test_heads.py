"""The CTC head and logit upsampling."""

import pytest
import torch
from torch import nn

from fairseq_speedup.heads import HEADS, HeadConfig, build_head, run_head, upsample_logits


def test_upsampling_turns_each_frame_into_neighbouring_frames():
    # 2 frames, 1 utterance, 2 labels, 3 logit frames a frame
    logits = torch.arange(12.0).view(2, 1, 6)
    expected = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert upsample_logits(logits, 3)[:, 0].tolist() == expected


def test_upsampling_keeps_utterances_apart():
    logits = torch.randn(5, 3, 8)
    whole = upsample_logits(logits, 2)
    for i in range(3):
        assert torch.equal(whole[:, i], upsample_logits(logits[:, i : i + 1], 2)[:, 0])


def test_upsampling_by_one_changes_nothing():
    logits = torch.randn(5, 3, 8)
    assert upsample_logits(logits, 1) is logits


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("factor", [1, 2])
def test_every_head_emits_its_labels_for_every_logit_frame(name, factor):
    head = build_head(HeadConfig(head=name, logit_upsample=factor), 16, 10)
    logits = run_head(head, torch.randn(7, 2, 16), torch.tensor([7, 5]))
    assert logits.shape == (7, 2, 10 * factor)


def test_the_bilstm_head_reads_an_utterance_to_its_end_and_no_further():
    head = build_head(HeadConfig(head="bilstm", head_dim=8), 16, 10)
    frames = torch.randn(7, 2, 16)
    together = run_head(head, frames, torch.tensor([7, 5]))
    alone = run_head(head, frames[:5, 1:], torch.tensor([5]))
    torch.testing.assert_close(together[:5, 1:], alone)
    frames[5:, 1] = 100.0
    assert torch.equal(run_head(head, frames, torch.tensor([7, 5]))[:5], together[:5])


def test_the_mlp_head_is_the_studys():
    head = build_head(HeadConfig(head="mlp"), 16, 10)
    assert [type(layer) for layer in head] == [nn.Linear, nn.LeakyReLU, nn.Linear]
    shapes = [(layer.in_features, layer.out_features) for layer in (head[0], head[2])]
    assert shapes == [(16, 16), (16, 10)]
    assert build_head(HeadConfig(head="mlp", head_dim=5), 16, 10)[0].out_features == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "tree"}, "unknown head='tree'; valid values: bilstm, linear, mlp"),
        ({"logit_upsample": 0}, "logit_upsample=0 is out of range.*>= 1"),
        ({"head_dim": -1}, "head_dim=-1 is out of range"),
    ],
)
def test_an_illegal_head_is_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        build_head(HeadConfig(**options), 16, 10)
