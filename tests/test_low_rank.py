"""Linear layers of low rank, from what they give on audio."""

import copy
import re

import pytest
import torch
from helpers.commands import generate_here, last_checkpoint, train
from helpers.corpora import LETTERS, letters_dictionary, write_noise
from helpers.models import (
    FAMILIES,
    batch_of,
    build_model,
    finetuned_families,
    load,
    made_once,
    write_finetuned,
    write_pretrained,
)
from torch import nn

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.inference import kernels, to_inference_form
from fairseq_speedup.inference.int8 import FbgemmProduct, OneDnnProduct, product_here
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.low_rank.linear import LowRankLinear
from fairseq_speedup.low_rank.outputs import OutputStatistics, rank_of
from fairseq_speedup.low_rank.ranks import LINEARS, low_rank_of, replace
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.fvcore_count import check_macs, fvcore_macs
from fairseq_speedup.pruning.gates import can_be_pruned
from fairseq_speedup.without_training import factorize, from_audio
from fairseq_speedup.without_training.factorize import watch

COUNTS = [9000, 6000]
SIZES = {
    "encoder_layers": 3,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "conv_pos_groups": 2,
}
PLANTED = 12  # rank of every linear layer's weights; a multiple of 16 holds it
WHOLE = ("1.v_proj", "2.fc1")  # but for these, where nothing else is reduced
OTHERS = {
    "layers": {"keep_layers": "0,2"},
    "exits": {"exit_layers": "1", "exit_criterion": "entropy", "exit_threshold": 0.0001},
    "pool_merge": {"frame_pool": 2, "merge_ratio": 0.2},
    "conv": {"downsample": "conv", "downsample_factor": 2.0},
    "fbank": {"frontend": "fbank"},
}


@pytest.fixture(scope="module")
def dictionary():
    return letters_dictionary()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Two recordings, 11 seconds."""
    return write_noise(tmp_path_factory.mktemp("speech"), a=2, b=9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dictionary):
    """``whole(kind, **options)``: a fine-tuned model whose linear layers have little rank."""
    return finetuned_families(tmp_path_factory.mktemp("whole"), dictionary, SIZES, little_rank)


def little_rank(weights: dict, options: dict) -> None:
    whole = () if options else WHOLE
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if re.search(rf"layers\.\d\..*({'|'.join(LINEARS)})\.weight", name):
            layer, *_, linear, _ = name.split("layers.")[1].split(".")
            if f"{layer}.{linear}" not in whole:
                left = torch.randn(weight.size(0), PLANTED, generator=generator)
                right = torch.randn(PLANTED, weight.size(1), generator=generator)
                weight.copy_(left @ right / (PLANTED * weight.size(1)) ** 0.5)


@pytest.fixture(scope="module")
def low(tmp_path_factory, whole, speech):
    """``low(kind, **options)``: what ``low-rank`` makes of it."""

    def make(path, output, options):
        command = ["low-rank", str(path), "--audio", str(speech), "--output", str(output)]
        assert main([*command, "--minutes", "0.15", "--cpu"]) == 0

    return made_once(tmp_path_factory.mktemp("low"), whole, make)


@torch.no_grad()
def logits_of(model, counts=tuple(COUNTS)):
    output = model.eval()(**batch_of(list(counts)))
    return output["encoder_out"][~output["padding_mask"].T]


# -- ranks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("energy", "rank"), [(0.4, 1), (0.5, 2), (0.79, 2), (0.81, 3), (0.999, 3), (1.0, 4)]
)
def test_the_fewest_directions_have_more_than_the_energy(energy, rank):
    assert rank_of(torch.tensor([5.0, 3.0, 2.0, 0.0], dtype=torch.float64), energy, 1) == rank


def test_ranks_are_whole_multiples_and_no_larger_than_the_layer():
    variances = torch.ones(40, dtype=torch.float64)
    assert [rank_of(variances, energy, 16) for energy in (0.1, 0.41, 0.99)] == [16, 32, 40]
    assert rank_of(torch.zeros(40, dtype=torch.float64), 0.99, 16) == 16  # any is enough


def test_mean_and_directions_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 6, generator=generator) * torch.arange(1.0, 7) + 1000
    rows[:, 1] = rows[:, 0]
    seen = OutputStatistics(6, "cpu")
    for block in rows.split(170):
        seen.add(block[:, None])
    assert seen.num_rows == 500
    torch.testing.assert_close(seen.mean(), rows.double().mean(dim=0), atol=1e-4, rtol=0)
    variances, directions = seen.directions()
    covariance = directions @ torch.diag(variances) @ directions.T
    expected = torch.cov(rows.T.double(), correction=0)
    torch.testing.assert_close(covariance, expected, atol=1e-3, rtol=1e-4)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True)
    assert variances[-1] < 1e-4


def test_watching_is_of_all_layers_and_leaves_the_model_as_it_is(whole, monkeypatch):
    leaving = {"exit_criterion": "entropy", "exit_threshold": 100.0}  # all leave at the exit
    model = load(whole("base", exit_layers="0", **leaving))
    encoder = model.w2v_encoder
    encoder.w2v_model.encoder.required_seq_len_multiple = 4
    pieces = [torch.randn(16000 * 6 + 320)]
    watched, before = watch(model, pieces)
    assert [len(of_layer) for of_layer in watched.values()] == [6, 6, 6]
    assert len(before[0]) == encoder.frame_lengths(len(pieces[0]))
    monkeypatch.setattr(factorize, "log_probs", lambda *unused: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        watch(model, pieces)
    assert encoder.w2v_model.encoder.required_seq_len_multiple == 4 and not encoder.exit.observed
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_of_low_rank_gives_its_outputs_projected():
    torch.manual_seed(0)
    linear, inputs = nn.Linear(7, 5), torch.randn(3, 4, 7)
    basis = torch.linalg.qr(torch.randn(5, 5))[0]
    mean, kept = torch.randn(5), basis[:, :2]
    low = LowRankLinear.of(linear, mean, kept)
    expected = mean + (linear(inputs) - mean) @ kept @ kept.T
    torch.testing.assert_close(low(inputs), expected)
    torch.testing.assert_close(LowRankLinear.of(linear, mean, basis)(inputs), linear(inputs))
    assert low.macs_per_frame() == 2 * (7 + 5)


def test_long_recordings_come_in_pieces_until_there_is_enough(
    whole, speech, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(from_audio, "PIECE_SECONDS", 4)
    given = []
    monkeypatch.setattr(factorize, "watch", lambda model, pieces: given.extend(pieces) or 1 / 0)
    for minutes, expected in ((10, [1, 2, 4, 4]), (0.125, [4, 3.5]), (0.05, [3])):
        given.clear()
        audio = ["--audio", str(speech / "b.wav"), str(speech / "a.wav")]
        with pytest.raises(ZeroDivisionError):
            output = ["--output", str(tmp_path / "low.pt"), "--minutes", str(minutes)]
            main(["low-rank", str(whole("base")), *audio, *output])
        assert sorted(len(piece) / 16000 for piece in given) == sorted(expected)


# -- the checkpoint ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_planted_ranks_are_found_and_the_model_gives_the_same(whole, low, kind):
    model, small = load(whole(kind)), load(low(kind))
    ranks = low_rank_of(small.cfg.w2v_args)["ranks"]
    whole_ones = [set(LINEARS) - set(of_layer) for of_layer in ranks]
    assert whole_ones == [set(), {"v_proj"}, {"fc1"}]
    assert {rank for of_layer in ranks for rank in of_layer.values()} == {16}
    torch.testing.assert_close(logits_of(small), logits_of(model), atol=5e-4, rtol=1e-3)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", FAMILIES)
def test_macs_are_those_that_fvcore_counts(whole, low, kind):
    small = load(low(kind))
    assert MacCounter(small).count([9000]).sum() == fvcore_macs(small, 9000)
    told = low_rank_of(small.cfg.w2v_args)["share"]
    counts = [MacCounter(each).count([160000]).sum().total for each in (small, load(whole(kind)))]
    assert told == pytest.approx(counts[0] / counts[1], abs=1e-6) and told < 0.95


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_a_reduced_model_is_given_low_ranks(whole, low, options):
    path = low("base", **options)
    model, small = load(whole("base", **options)), load(path)
    assert low_rank_of(small.cfg.w2v_args)["ranks"][0]["fc2"] == 16
    torch.testing.assert_close(logits_of(small), logits_of(model), atol=5e-4, rtol=1e-3)
    check = check_macs([small], 8000)
    assert check["closed_form"] == check["fvcore"]


def test_a_stock_model_becomes_ours_with_its_numbers(whole, low):
    small = load(low("large", stock=True))
    assert type(small).__name__ == "SpeedupCtc"
    expected = load(whole("large", stock=True))
    torch.testing.assert_close(logits_of(small), logits_of(expected), atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kind", ["base", "wavlm"])
def test_inference_forms_are_those_of_the_model_as_it_was_trained(low, kind, form):
    if form == "int8" and product_here() is None:
        pytest.skip("this CPU has no instructions for int8")
    model = load(low(kind))
    expected, fast = logits_of(model), copy.deepcopy(model)
    to_inference_form(fast, form)
    found = logits_of(fast)
    limit = {"fp32": 1e-4, "bf16": 0.15, "int8": 0.15}[form]
    assert (found - expected).abs().max() / expected.abs().max() < limit
    assert MacCounter(fast).count([8000]).sum() == MacCounter(model).count([8000]).sum()
    assert not [each for each in fast.modules() if isinstance(each, LowRankLinear)]


@pytest.mark.parametrize("rank", [64, 128])
@torch.no_grad()
def test_without_c_in_int8_layers_of_low_rank_are_of_frames(tmp_path, monkeypatch, rank):
    """Where the first matrix is in int8, and the second has too few weights for it."""
    size = {"encoder_embed_dim": 128, "encoder_ffn_embed_dim": 1024 * 128 // rank}
    model = build_model(write_pretrained(tmp_path / "wide.pt", **size, encoder_layers=2))
    for layer in model.w2v_encoder.w2v_model.encoder.layers:
        directions = torch.linalg.qr(torch.randn(128, rank))[0]
        replace(layer, "fc2", LowRankLinear.of(layer.fc2, torch.zeros(128), directions))
    fast = copy.deepcopy(model)
    monkeypatch.setattr(kernels, "LIBRARY", None)
    if not any(product.runs_here() for product in (OneDnnProduct, FbgemmProduct)):
        pytest.skip("this CPU multiplies int8 in C alone")
    to_inference_form(fast, "int8")
    net_input = batch_of([9000, 4000])
    expected, found = (each(**net_input)["encoder_out"] for each in (model, fast))
    assert found.shape == expected.shape
    assert (found - expected)[:12].abs().max() < 0.15 * expected.abs().max()


@pytest.mark.parametrize("kind", ["base", "wavlm"])
def test_it_is_exported_to_onnx(low, tmp_path, kind):
    pytest.importorskip("onnxruntime")
    from fairseq_speedup.export import OnnxModel

    written = tmp_path / "model.onnx"
    assert main(["export", "--path", str(low(kind)), "--output", str(written)]) == 0
    source = batch_of([7000])["source"]
    log_probs = torch.as_tensor(OnnxModel(str(written)).log_probs(source.numpy())[0])
    with torch.no_grad():
        logits = load(low(kind))(source=source, padding_mask=None)["encoder_out"]
    expected = torch.log_softmax(logits, -1)
    torch.testing.assert_close(log_probs.transpose(0, 1), expected, atol=5e-3, rtol=0)


def test_it_is_decoded_and_inspected(low, corpus, tmp_path, capsys):
    path = low("base")
    generate_here(corpus, path, tmp_path / "results")
    assert (tmp_path / "results/compute.json").exists()
    report = inspect_file(str(path))
    assert report["error"] is None and report["use"].endswith("model.w2v_path")
    assert report["low_rank"]["ranks"][0]["q_proj"] == 16
    assert main(["inspect", str(path)]) == 0
    assert re.search(r"low rank .*v_proj 16 - 16", capsys.readouterr().out)


def test_it_is_a_start_with_its_head_and_can_be_reduced(low):
    small = load(low("large"))
    again = build_model(low("large"), num_labels=14, labels=LETTERS)
    torch.testing.assert_close(logits_of(again), logits_of(small), atol=1e-5, rtol=1e-5)
    fewer = build_model(low("large"), num_labels=14, labels=LETTERS, keep_layers="1,2")
    layers = fewer.w2v_encoder.w2v_model.encoder.layers
    assert isinstance(layers[0].fc1, LowRankLinear) and isinstance(layers[1].fc1, nn.Linear)
    check = check_macs([fewer], 8000)
    assert check["closed_form"] == check["fvcore"]


def test_it_is_trained_on_with_the_whole_model_as_teacher(whole, low, corpus, tmp_path):
    train(
        tmp_path,
        corpus,
        low("base"),
        "criterion._name=ctc_distillation",
        f"+criterion.teacher_path={whole('base')}",
        "model.freeze_finetune_updates=0",
        "optimization.max_update=2",
        "dataset.disable_validation=true",
    )
    trained = torch.load(last_checkpoint(tmp_path), weights_only=False)["model"]
    name = "w2v_encoder.w2v_model.encoder.layers.0.fc1.first.weight"
    before = torch.load(low("base"), weights_only=False)["model"][name]
    assert trained[name].shape == before.shape == (16, 64)
    assert not torch.equal(trained[name], before)


# -- refusals ------------------------------------------------------------------------------------


def refused(capsys, *arguments) -> str:
    assert main(["low-rank", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def refused_by_prune(capsys, *arguments) -> str:
    assert main(["prune", *map(str, arguments), "--target", "0.9"]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--energy-ffn", "1.5"], "--energy-ffn 1.5 is out of range"),
        (["--energy-attention", "0"], "--energy-attention 0.0 is out of range"),
        (["--max-layer-macs", "nan"], "--max-layer-macs nan is out of range"),
        (["--minutes", "0"], "--minutes 0.0 is out of range"),
        (["--data", "."], "give either --data, a folder with labels, or --audio"),
        (["--minutes", "0.01"], r"too little audio: its 0\.6 s have 29 frames in q_proj of layer"),
        (["--max-layer-macs", "0.01"], "no layer would keep less than --max-layer-macs 0.01"),
    ],
)
def test_options_that_give_nothing_are_refused(whole, speech, tmp_path, capsys, options, words):
    output = tmp_path / "low.pt"
    audio = ["--audio", speech, "--output", output]
    assert re.search(words, refused(capsys, whole("base"), *audio, *options))
    assert not output.exists()


def test_models_that_are_not_for_it_are_refused(
    whole, low, speech, tmp_path, capsys, dictionary, pretrained
):
    audio = ["--audio", speech, "--output", tmp_path / "again.pt"]
    assert "is of low rank already" in refused(capsys, low("base"), *audio)
    gates = write_finetuned(tmp_path / "gates.pt", pretrained, dictionary, prune_target=0.99)
    assert "has gates of prune_target: prune it first" in refused(capsys, gates, *audio)
    start = write_pretrained(
        tmp_path / "conformer.pt",
        layer_type="conformer",
        attn_type="espnet",
        pos_enc_type="rope",
        depthwise_conv_kernel_size=3,
    )
    conformer = tmp_path / "finetuned.pt"
    write_finetuned(conformer, start, dictionary, layer_type="conformer")
    assert "ConformerLayers; low-rank works with transformer" in refused(capsys, conformer, *audio)
    said = refused_by_prune(capsys, low("base"), *audio)
    assert "is of low rank; prune the checkpoint that it was made of" in said
    assert can_be_pruned(load(whole("base"))) and not can_be_pruned(load(low("base")))
    with pytest.raises(ValueError, match="is of low rank; prune first"):
        build_model(low("base"), num_labels=14, labels=LETTERS, prune_target=0.9)


def test_hugging_face_has_no_such_layers(low, tmp_path, capsys):
    pytest.importorskip("transformers")
    assert main(["convert", str(low("base")), str(tmp_path / "folder")]) == 1
    assert "is of low rank: it has two matrices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([{"fc1": 16}], "ranks has nothing for layer 1"),
        ([{"fc1": 65}, {}, {}], "fc1 of layer 0 has 65, which is no number from 1 to 64"),
        ([{}, {"fc2": "16"}, {}], "fc2 of layer 1 has 16, which is no number"),
        ([{}, {"fc3": 16}, {}], "layer 1 has no fc3; valid names: q_proj"),
    ],
)
def test_ranks_that_layers_cannot_have_are_refused(low, tmp_path, ranks, words):
    state = torch.load(low("base"), weights_only=False)
    state["cfg"]["model"]["w2v_args"]["encoder_variant"]["low_rank"]["ranks"] = ranks
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load(tmp_path / "bad.pt")
