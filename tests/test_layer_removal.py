"""Keeping some of the transformer's layers."""

import pytest
import torch
from helpers.models import batch_of, build_model, write_pretrained
from torch import nn

from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.fvcore_count import fvcore_macs
from fairseq_speedup.transformer.layer_removal import parse_keep_layers


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A pretrained model with 24 layers."""
    return write_pretrained(tmp_path_factory.mktemp("deep") / "deep.pt", encoder_layers=24)


@torch.no_grad()
def logits_of(model):
    return model.eval()(**batch_of([9000, 7000]))["encoder_out"]


def test_the_first_12_of_24_layers_equal_stock_fairseq_cut_to_12(deep):
    ours = build_model(deep, keep_layers="12")
    stock = build_model(deep, stock=True)
    stock.w2v_encoder.w2v_model.remove_pretraining_modules(last_layer=11)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert torch.equal(logits_of(ours), logits_of(stock))


@pytest.mark.parametrize("kept", ["0,2,4,6", "3,", "1"])
def test_kept_layers_keep_their_weights_and_names(deep, kept):
    whole = build_model(deep).w2v_encoder.w2v_model.encoder
    reduced = build_model(deep, keep_layers=kept).w2v_encoder.w2v_model.encoder
    indices = parse_keep_layers(kept, 24)
    assert [name for name, _ in reduced.layers.named_children()] == [str(i) for i in indices]
    for position, index in enumerate(indices):
        assert torch.equal(reduced.layers[position].fc1.weight, whole.layers[index].fc1.weight)


def test_only_kept_layers_are_run(deep):
    model = build_model(deep, keep_layers="0,5,23")
    called = []
    for name, layer in model.w2v_encoder.w2v_model.encoder.layers.named_children():
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    logits_of(model)
    assert called == ["0", "5", "23"]


def test_a_whole_checkpoint_can_be_read_with_fewer_layers(deep):
    whole = build_model(deep, seed=1)
    reduced = build_model(deep, keep_layers="0,4,9", seed=2)
    reduced.load_state_dict(whole.state_dict())
    layers = whole.w2v_encoder.w2v_model.encoder.layers
    whole.w2v_encoder.w2v_model.encoder.layers = nn.ModuleList(layers[i] for i in (0, 4, 9))
    assert torch.equal(logits_of(reduced), logits_of(whole))


def test_a_reduced_checkpoint_can_be_reduced_further_but_not_grown(deep):
    reduced = build_model(deep, keep_layers="0,4,9")
    smaller = build_model(deep, keep_layers="0,9", seed=2)
    smaller.load_state_dict(reduced.state_dict())
    with pytest.raises(ValueError, match=r"layers that the checkpoint lacks: 5; it holds 0, 4, 9"):
        build_model(deep, keep_layers="0,5").load_state_dict(reduced.state_dict())


def test_macs_fall_with_the_layers(deep):
    whole, half = build_model(deep), build_model(deep, keep_layers="12")
    assert MacCounter(half).count([8000]).sum() == fvcore_macs(half, 8000)
    per_layer = {
        n: int(MacCounter(model).count([8000]).transformer[0])
        for n, model in ((24, whole), (12, half))
    }
    pos_conv = 2 * per_layer[12] - per_layer[24]  # what does not depend on the layers
    assert 0 < pos_conv < per_layer[12]


@pytest.mark.parametrize(
    ("keep_layers", "words"),
    [
        ("25", "keep_layers=25 is out of range: it must be 1 to 24"),
        ("0", "keep_layers=0 is out of range"),
        ("0,24", "keep_layers=0,24 is out of range: the model has layers 0 to 23"),
        ("0,2,2", "repeats a layer"),
        ("2,0", "not in rising order"),
        ("", "neither 'all', a number of layers nor a list"),
        ("first", "neither 'all', a number of layers nor a list"),
        ("-1", "neither 'all'"),
    ],
)
def test_layers_that_cannot_be_kept_are_refused_in_words(deep, keep_layers, words):
    with pytest.raises(ValueError, match=words):
        build_model(deep, keep_layers=keep_layers)
