"""Conformer layers: fairseq's numbers, without padding where that is asked for."""

import copy
import re

import pytest
import torch
from fairseq.modules import RelPositionalEncoding
from fairseq.modules.conformer_layer import ConformerWav2Vec2EncoderLayer
from helpers.models import TINY, batch_of, build_model, write_pretrained
from torch import nn

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.decoding.run import padding_gets_in
from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.lengths import multiple_length, padding_mask_of
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.fvcore_count import check_macs
from fairseq_speedup.transformer.conformer import ConformerLayer, Rotations, ValidBatchNorm

CONFORMER = {
    "layer_type": "conformer",
    "attn_type": "espnet",
    "depthwise_conv_kernel_size": 7,
    "layer_norm_first": True,
}
POSITIONS = ["abs", "rope", "rel_pos"]
COUNTS = [9000, 4000, 7000]


@pytest.fixture(scope="module", params=POSITIONS)
def conformer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("conformer") / "tiny.pt"
    return write_pretrained(path, **CONFORMER, pos_enc_type=request.param)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_layer_gives_fairseqs_numbers(positions, training):
    options = {"attn_type": "espnet", "pos_enc_type": positions, "use_fp16": False}
    theirs = ConformerWav2Vec2EncoderLayer(16, 32, 2, 0.0, **options).train(training)
    ours = ConformerLayer(16, 32, 2, 0.0, **options).train(training)
    weights = {name: w for name, w in theirs.state_dict().items() if "rotary_emb" not in name}
    ours.load_state_dict(weights)
    encoding = RelPositionalEncoding(1, 16)
    ours.self_attn.positions = (Rotations(8) if positions == "rope" else encoding,)
    frames = torch.randn(11, 3, 16)
    padding_mask = padding_mask_of(torch.tensor([11, 5, 8]), 11)
    expected, (_, expected_result) = theirs(
        frames, self_attn_padding_mask=padding_mask, position_emb=encoding(frames)
    )
    found, (_, result) = ours(frames, self_attn_padding_mask=padding_mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result, expected_result, atol=1e-5, rtol=1e-5)
    for name, statistic in theirs.conv_module.batch_norm.named_buffers():
        torch.testing.assert_close(ours.conv_module.batch_norm.get_buffer(name), statistic)
    assert theirs.self_attn.attn is not None and ours.self_attn.attn is None  # nothing is kept


@torch.no_grad()
def test_padding_reaches_an_utterance_with_stock_padding_alone(conformer):
    net_input = batch_of(COUNTS)
    for padding, safe in (("masked", True), ("stock", False)):
        model = build_model(conformer, padding=padding)
        together = model.get_logits(model(**net_input))
        alone = {"source": net_input["source"][1:2, : COUNTS[1]], "padding_mask": None}
        expected = model.get_logits(model(**alone))
        distance = (together[: expected.size(0), 1] - expected[:, 0]).abs().max()
        assert (distance < 1e-5) == safe
        assert padding_gets_in(model) != safe


def test_batch_norm_learns_from_valid_frames_alone():
    lengths, frames = torch.tensor([7, 3]), torch.randn(2, 5, 7)
    norm, plain = ValidBatchNorm(5), nn.BatchNorm1d(5)
    found = norm(frames, padding_mask_of(lengths, 7))
    valid = torch.cat([frames[0], frames[1, :, :3]], dim=1)  # (C, frames)
    expected = plain(valid.T).T
    torch.testing.assert_close(found[0], expected[:, :7])
    torch.testing.assert_close(found[1, :, :3], expected[:, 7:])
    assert found[1, :, 3:].abs().max() == 0
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_are_frozen_with_the_weights(conformer, frozen):
    model = build_model(conformer, exit_layers="0", exit_heads_only=frozen)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()(**batch_of(COUNTS))
    learned = [name for name, buffer in model.named_buffers() if not buffer.equal(before[name])]
    assert bool(learned) != frozen


@pytest.mark.parametrize("attention", ["espnet", ""])
def test_macs_with_absolute_positions_are_those_that_fvcore_counts(tmp_path, attention):
    options = CONFORMER | {"attn_type": attention, "pos_enc_type": "abs"}
    path = write_pretrained(tmp_path / "abs.pt", **options)
    check = check_macs([build_model(path, merge_ratio=0.2)], 8000)
    assert check["closed_form"] == check["fvcore"]


@pytest.mark.parametrize("form", ["fp32", "int8", "bf16"])
@pytest.mark.parametrize("padding", ["masked", "stock"])
@pytest.mark.parametrize("attention", ["espnet", ""])
@torch.no_grad()
def test_inference_forms_are_the_model(tmp_path, attention, padding, form):
    """At even and odd numbers of frames; fairseq's own attention is what it has by default."""
    options = CONFORMER | {"attn_type": attention, "pos_enc_type": "abs"}
    model = build_model(write_pretrained(tmp_path / "abs.pt", **options), padding=padding)
    fast = copy.deepcopy(model)
    assert to_inference_form(fast, form)["layers"].startswith("as it is")
    for num_samples in (9000, 9320):
        net_input = batch_of([num_samples, 4000])
        expected, found = (each(**net_input)["encoder_out"] for each in (model, fast))
        distance = (found - expected)[:12].abs().max()  # of valid frames
        assert distance < (1e-4 if form == "fp32" else 0.15) * expected.abs().max()
        assert torch.equal(fast(**net_input)["encoder_out"], found)


@torch.no_grad()
def test_layers_with_adapters_have_inference_forms(pretrained):
    options = {"layer_type": "trf_adp", "adp_num": 2, "adp_dim": 4, "no_pretrained_weights": True}
    model = build_model(pretrained, **options)
    fast = copy.deepcopy(model)
    to_inference_form(fast, "fp32")
    net_input = batch_of([9000, 4000]) | {"corpus_key": [1, 1]}
    expected, found = (each(**net_input)["encoder_out"] for each in (model, fast))
    torch.testing.assert_close(found[:12], expected[:12], atol=1e-4, rtol=0)  # valid frames


def test_attention_products_are_what_no_module_computes(conformer):
    model = build_model(conformer)
    encoder = model.w2v_encoder.w2v_model.encoder
    num_frames = int(model.w2v_encoder.frame_lengths(8000))
    num_frames = multiple_length(num_frames, encoder.required_seq_len_multiple)
    per_channel = 2 * num_frames**2  # q.k and weights.v
    if encoder.layers[0].pos_enc_type == "rel_pos":
        per_channel += num_frames * (2 * num_frames - 1)  # q.distance
    full, modules = (
        MacCounter(model, count).count([8000]).sum().total for count in ("full", "modules")
    )
    assert full - modules == TINY["encoder_layers"] * TINY["encoder_embed_dim"] * per_channel


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pos_enc_type": "alibi"}, "pos_enc_type='alibi' is none of abs, rope, rel_pos"),
        ({"pos_enc_type": "rope", "attn_type": ""}, "pos_enc_type=rope is a part of attn_type="),
        ({"depthwise_conv_kernel_size": 8}, "depthwise_conv_kernel_size=8 is no odd number"),
    ],
)
def test_a_conformer_that_cannot_be_is_refused_in_words(tmp_path, options, words):
    path = write_pretrained(tmp_path / "tiny.pt", **CONFORMER, pos_enc_type="rope")
    state = torch.load(path, weights_only=False)
    state["cfg"]["model"] |= options
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}.*{re.escape(words)}"):
        build_model(path)


def test_a_layer_type_that_is_not_the_pretrained_models_is_refused_in_words(conformer, pretrained):
    with pytest.raises(ValueError, match="layer_type=trf_adp with a pretrained conformer"):
        build_model(conformer, layer_type="trf_adp")
    with pytest.raises(ValueError, match="layer_type=conformer with a pretrained transformer"):
        build_model(pretrained, layer_type="conformer")
