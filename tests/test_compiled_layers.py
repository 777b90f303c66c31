"""A transformer layer in one call of C gives what its parts do."""

import copy

import pytest
import torch
from helpers.models import FRONT_ENDS, batch_of, build_model, write_four_layers, write_wavlm
from torch.testing import assert_close

from fairseq_speedup.inference import kernels, to_inference_form
from fairseq_speedup.inference.int8 import CompiledProduct, Int8Linear, product_here
from fairseq_speedup.inference.kernels.layers import LayerInC
from fairseq_speedup.inference.kernels.linears import floats_multiplier
from fairseq_speedup.inference.layer import FusedLayer

pytestmark = pytest.mark.skipif(not floats_multiplier(), reason="no compiled linear layers")
FORMS = ["fp32"]
product = product_here()
in_c = product is not None and issubclass(product, CompiledProduct)
if in_c and Int8Linear.dtype is torch.float32:  # and not bf16, in which attention is torch's
    FORMS.append("int8")


def layers_of(path, form, **options):
    model = build_model(path, **options)
    to_inference_form(model, form)
    return [module for module in model.modules() if isinstance(module, FusedLayer)]


def check_against_its_parts(layer, lengths, form):
    x = torch.randn(sum(lengths), 1, layer.fc1.in_features)
    packed = {"packed_lengths": lengths} if len(lengths) > 1 else {}
    together = layer.in_c
    given, (weights, _) = layer(x, **packed)
    assert given.shape == x.shape and weights is None
    assert together is not None
    layer.in_c = None
    expected, _ = layer(x, **packed)
    layer.in_c = together
    # levels may round another way
    tolerance = 1e-5 if form == "fp32" else 0.02
    assert_close(given, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("bits", [512, 256])
@pytest.mark.parametrize("lengths", [[1], [37], [5, 40, 1], [500]], ids=str)
@torch.no_grad()
def test_a_layer_gives_what_its_parts_do(tmp_path, monkeypatch, form, front_end, bits, lengths):
    monkeypatch.setattr(kernels, "MOST_BITS", bits)
    layers = layers_of(write_four_layers(tmp_path / "four.pt", front_end), form)
    assert len(layers) == 4
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for layer in layers:
            check_against_its_parts(layer, lengths, form)
    torch.set_num_threads(1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@torch.no_grad()
def test_many_frames_go_through_a_block_at_a_time(tmp_path, form, front_end):
    layer = layers_of(write_four_layers(tmp_path / "four.pt", front_end), form)[1]
    bytes_of_frame = layer.fc1.out_features * 4
    num_frames = 2 * (1 << 22) // bytes_of_frame + 5  # two blocks of layers.c and a few frames
    check_against_its_parts(layer, [100] * (num_frames // 100) + [num_frames % 100], form)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_what_c_cannot_do_is_done_in_parts(tmp_path, form):
    """A bias for each distance, frames in batches, and those that are padded."""
    assert all(layer.in_c is None for layer in layers_of(write_wavlm(tmp_path / "wavlm.pt"), form))
    layer = layers_of(write_four_layers(tmp_path / "four.pt", "group_norm"), form)[0]
    x = torch.randn(20, 2, layer.fc1.in_features)
    batch = layer(x)[0]
    for index in range(2):
        alone = layer(x[:, index : index + 1])[0]
        assert_close(batch[:, index : index + 1], alone, atol=0.02, rtol=0.02)
    mask = torch.zeros(1, 20, dtype=torch.bool)
    mask[0, 15:] = True
    padded = layer(x[:, :1], self_attn_padding_mask=mask)[0][:15]
    assert_close(padded, layer(x[:15, :1])[0], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counts", [[9000], [9000, 6000, 7777]], ids=["alone", "batch"])
@pytest.mark.parametrize(
    "options",
    [
        {"merge_ratio": 0.2},
        {"exit_layers": "0,1,2", "exit_criterion": "entropy", "exit_threshold": 1.0},
    ],
    ids=["merging", "exits"],
)
@torch.no_grad()
def test_stages_between_layers_leave_these_in_c(tmp_path, monkeypatch, form, counts, options):
    """Of a batch that is padded too, and once frames are fewer than they were."""
    model = build_model(write_four_layers(tmp_path / "four.pt", "group_norm"), **options)
    to_inference_form(model, form)
    given = []

    def outputs(layer, frames, lengths):
        given.append(lengths)
        return through(layer, frames, lengths)

    through = LayerInC.outputs
    monkeypatch.setattr(LayerInC, "outputs", outputs)
    run = model(**batch_of(counts))["layer_frames"]
    assert [sum(lengths) for lengths in given] == [n for n in run.sum(dim=0).tolist() if n]
    assert len(given) > 1


@torch.no_grad()
def test_a_model_that_is_given_other_storage_gives_the_same(tmp_path):
    path = write_four_layers(tmp_path / "four.pt", "group_norm")
    layer = layers_of(path, "fp32")[0]
    x = torch.randn(30, 1, layer.fc1.in_features)
    expected = layer(x)[0]
    layer.double().float()
    torch.full((1 << 16,), torch.nan)  # where it may have been
    assert torch.equal(layer(x)[0], expected)
    layer.share_memory()
    assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_made_once_and_is_neither_copied_nor_saved(tmp_path, form):
    model = build_model(write_four_layers(tmp_path / "four.pt", "group_norm"))
    to_inference_form(model, form)
    with pytest.raises(ValueError, match=f"--inference fp32: .* form {form}; load it"):
        to_inference_form(model, "fp32")
    for copied in (copy.deepcopy, lambda model: torch.save(model, tmp_path / "model.pt")):
        with pytest.raises(TypeError, match="neither copied nor saved: load it again"):
            copied(model)


@torch.no_grad()
def test_frames_that_do_not_fit_are_refused(tmp_path):
    layer = layers_of(write_four_layers(tmp_path / "four.pt", "group_norm"), "fp32")[0]
    width = layer.fc1.in_features
    with pytest.raises(ValueError, match=r"30 frames of .* channels, 29 of"):
        layer(torch.randn(30, 1, width), packed_lengths=[20, 9])
    with pytest.raises(ValueError, match="channels"):
        layer(torch.randn(30, 1, width - 1))
