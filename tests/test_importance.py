"""Pruning by importance, measured on audio: scores, the choice, what takes over, the command."""

import copy
import re
import weakref

import numpy as np
import pytest
import soundfile
import torch
from helpers.commands import prune_command
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
from fairseq_speedup.importance.measure import add_gates, close, measure
from fairseq_speedup.importance.readers import Readers
from fairseq_speedup.importance.reconstruction import reconstruct
from fairseq_speedup.importance.scores import SCORES, TaylorScore
from fairseq_speedup.importance.selection import SLACK, Selection, TargetError
from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.low_rank.outputs import OutputStatistics
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.fvcore_count import check_macs, fvcore_macs
from fairseq_speedup.pruning.sizes import pruned_of

ALL = "channels,heads,units"
SIZES = {
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_attention_heads": 4,
    "conv_pos_groups": 2,
}
OTHERS = {
    "layers": {"keep_layers": "0,2"},
    "exits": {"exit_layers": "1", "exit_criterion": "entropy", "exit_threshold": 2.6},
    "pool_merge": {"frame_pool": 2, "merge_ratio": 0.2},
    "conv": {"downsample": "conv", "downsample_factor": 2.0},
    "fbank": {"frontend": "fbank"},
    "depths": {"depths": [2, 3]},
}


@pytest.fixture(scope="module")
def dictionary():
    return letters_dictionary()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Two recordings, 5 seconds."""
    return write_noise(tmp_path_factory.mktemp("speech"), a=2, b=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dictionary):
    """``whole(kind, **options)``: a fine-tuned model."""
    return finetuned_families(tmp_path_factory.mktemp("whole"), dictionary, SIZES)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, whole, speech):
    """``pruned(kind, **options)``: what ``prune --target`` makes of it."""

    def make(path, output, options):
        assert main(prune_command(path, speech, output, "--target", target_of(options))) == 0

    return made_once(tmp_path_factory.mktemp("pruned"), whole, make)


def target_of(options) -> float:
    return 0.9 if "frontend" in options else 0.7


def gated(path, parts: str = ALL, **overrides):
    model = load(path, **overrides)
    add_gates(model, parts, length_seconds=10)
    return model


def utterances(count: int = 6, samples: int = 4000):
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(count, samples, generator=generator))


@torch.no_grad()
def logits_of(model):
    output = model.eval()(**batch_of([9000, 6000]))
    return output["encoder_out"][~output["padding_mask"].T]


# -- scores --------------------------------------------------------------------------------------


@torch.no_grad()
def make_useless(readers) -> dict[str, int]:
    """Of each layer that reads, one gate whose inputs it does nothing with; their places."""
    places = {}
    for position, (name, reader) in enumerate(readers.items()):
        place = position % reader.gate.size
        each = slice(place * reader.repeats, (place + 1) * reader.repeats)
        reader.layer.weight[:, each] = 0
        places[name] = place
    return places


@pytest.mark.parametrize("by", SCORES)
@pytest.mark.parametrize("kind", ["base", "large", "wavlm"])
def test_what_is_of_no_use_is_least_important(whole, kind, by):
    model = gated(whole(kind))
    places = make_useless(Readers(model.w2v_encoder).by_name)
    assert len(places) == 7 + 2 * len(model.w2v_encoder.kept_layers)  # 7 convolutions
    seen = measure(model, utterances(), by)
    for name, place in places.items():
        score = seen[name].score
        assert score[place] == 0 and (score > 0).sum() == len(score) - 1, name


def test_the_taylor_score_is_half_of_what_the_divergence_grows_by(whole):
    """KL(whole || gate at 1 - e) is score * e * e, for an utterance; e is small."""
    model, (waveform,), draws, e = gated(whole("base")), utterances(1), 300, 0.02
    with torch.no_grad():
        model.w2v_encoder.proj.weight /= 30  # posteriors that are not all of one label
    watched = Readers(model.w2v_encoder)
    readers = watched.by_name
    score = TaylorScore(list(readers.values()))
    with watched.watching():
        for _ in range(draws):
            score.learn(model, waveform)
    expected = log_probs_of(model, waveform)
    names = list(readers)
    for name in (names[2], names[6], names[8], names[9]):  # channels, of the last, a head, a unit
        reader = readers[name]
        found = score.of(reader) / draws
        place = int(found.argmax())
        each = slice(place * reader.repeats, (place + 1) * reader.repeats)
        before = reader.layer.weight.detach().clone()
        with torch.no_grad():
            reader.layer.weight[:, each] *= 1 - e
        changed = log_probs_of(model, waveform)
        with torch.no_grad():
            reader.layer.weight.copy_(before)
        divergence = (expected.exp() * (expected - changed)).sum().item()
        assert found[place].item() * e**2 == pytest.approx(divergence, rel=0.25), name


@torch.no_grad()
def log_probs_of(model, waveform):
    logits = model(source=waveform[None], padding_mask=None)["encoder_out"][:, 0]
    return torch.log_softmax(logits.double(), dim=-1)


def test_nothing_of_an_utterance_is_held_when_it_was_learned_from(whole):
    model = gated(whole("base"))
    watched = Readers(model.w2v_encoder)
    readers = list(watched.by_name.values())
    score, seen = TaylorScore(readers), []
    with watched.watching():
        for reader in readers:  # after its own
            reader.layer.register_forward_pre_hook(
                lambda _, args: seen.append(weakref.ref(args[0]))
            )
        score.learn(model, utterances(1)[0])
    assert len(seen) == len(readers)
    assert not [each for each in seen if each() is not None]


def test_measuring_leaves_the_model_as_it_is(whole):
    model = gated(whole("base"), freeze_finetune_updates=5)
    before, asked = logits_of(model), [p.requires_grad for p in model.parameters()]
    with_hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    torch.testing.assert_close(before, logits_of(load(whole("base"))), atol=1e-3, rtol=1e-5)
    measure(model, utterances(), "taylor")
    assert torch.equal(logits_of(model), before)
    assert [p.requires_grad for p in model.parameters()] == asked
    assert [len(module._forward_pre_hooks) for module in model.modules()] == with_hooks
    assert model.w2v_encoder.freeze_finetune_updates == 5


# -- the choice ----------------------------------------------------------------------------------


def scores_of(gates, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return {gate: torch.rand(gate.size, generator=generator).double() for gate in gates.all()}


@pytest.mark.parametrize("target", [0.95, 0.8, 0.6])
def test_what_stays_is_the_target_and_nothing_more_fits(whole, target):
    gates = gated(whole("base")).w2v_encoder.pruning
    gates.prune_target = target
    for seed in range(3):
        chosen = Selection(gates, scores_of(gates, seed))
        counts = {gate: sum(mask) for gate, mask in chosen.masks.items()}
        share = gates.macs_of(counts.__getitem__) / gates.macs.full
        assert chosen.share == share and target - 0.01 <= share <= target
        for gate in gates.all():
            if counts[gate] < gate.size:
                more = counts | {gate: counts[gate] + 1}
                assert gates.macs_of(more.__getitem__) / gates.macs.full > target


def test_the_least_important_per_mac_goes_first(whole):
    gates = gated(whole("base"), "units").w2v_encoder.pruning
    gates.prune_target = 1 - (1 - gates.smallest_share()) / 4
    scores = scores_of(gates)
    masks = Selection(gates, scores).masks
    stay = torch.cat([scores[gate][torch.tensor(masks[gate])] for gate in gates.all()])
    go = torch.cat([scores[gate][~torch.tensor(masks[gate])] for gate in gates.all()])
    assert len(go) > 0 and go.max() < stay.min()  # every unit costs as much
    dear = gates.units["1"]
    masks = Selection(gates, scores | {dear: 1 + scores[dear]}).masks
    assert all(masks[dear]) and not all(masks[gates.units["0"]])


def test_heads_alone_come_as_near_as_whole_ones_can(whole):
    gates = gated(whole("base"), "heads").w2v_encoder.pruning
    head = next(iter(gates.macs.heads.values())) / gates.macs.full
    assert head > SLACK  # so that no number of them is near enough
    gates.prune_target = 1 - 2.5 * head
    chosen = Selection(gates, scores_of(gates))
    assert chosen.share == pytest.approx(1 - 3 * head)


def test_a_convolution_keeps_a_channel_and_the_smallest_is_told(whole):
    gates = gated(whole("base"), "channels").w2v_encoder.pruning
    gates.prune_target = gates.smallest_share()
    masks = Selection(gates, scores_of(gates)).masks
    assert [sum(mask) for mask in masks.values()] == [1] * 7
    gates.prune_target -= 0.01
    with pytest.raises(TargetError) as refused:
        Selection(gates, scores_of(gates))
    assert refused.value.smallest == gates.smallest_share()


# -- what stays takes over -----------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv1d(6, 5, 3)], ids=["linear", "conv"])
def test_inputs_that_follow_from_others_are_not_missed(layer):
    generator = torch.Generator().manual_seed(0)
    free = torch.randn(4000, 4, generator=generator) + 2
    follow = free @ torch.randn(4, 2, generator=generator) - 3
    rows = torch.cat([free[:, :2], follow, free[:, 2:]], dim=1)
    stay = torch.tensor([True, True, False, False, True, True])
    inputs = OutputStatistics(6, "cpu")
    inputs.add(rows)
    given = rows.T[None] if isinstance(layer, nn.Conv1d) else rows
    expected = layer(given)
    reconstruct(layer, inputs, stay)
    with torch.no_grad():
        layer.weight[:, ~stay] = 0  # what cutting does
    error = (layer(given) - expected).std() / expected.std()
    assert error < 0.01  # the ridge's


def test_the_mean_of_what_goes_stays():
    layer, inputs = nn.Linear(3, 2), OutputStatistics(3, "cpu")
    rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) + 5
    inputs.add(rows)
    expected = layer(rows).mean(dim=0)
    reconstruct(layer, inputs, torch.tensor([False, True, False]))
    with torch.no_grad():
        layer.weight[:, [0, 2]] = 0
    torch.testing.assert_close(layer(rows).mean(dim=0), expected, atol=1e-4, rtol=0)


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_pruned_model_is_the_one_whose_gates_are_closed(whole, pruned, speech, kind):
    small, full = load(pruned(kind)), load(whole(kind))
    samples = [soundfile.read(speech / f"{name}.wav", dtype="float32")[0] for name in "ab"]
    order = np.random.default_rng(0).permutation(2)
    waveforms = [torch.from_numpy(samples[i]) for i in order]
    pieces = [torch.layer_norm(each, each.shape) for each in waveforms]
    model = gated(whole(kind))
    close(model, measure(model, pieces, "taylor"), 0.7)
    expected = logits_of(model)
    torch.testing.assert_close(logits_of(small), expected, atol=1e-3, rtol=1e-3)
    assert (expected - logits_of(full)).abs().max() > 0.1
    counts = [MacCounter(each).count([160000]).sum().total for each in (small, full)]
    assert 0.69 <= counts[0] / counts[1] <= 0.7
    assert pruned_of(small.cfg.w2v_args)["share"] == pytest.approx(counts[0] / counts[1], abs=1e-6)
    assert MacCounter(small).count([9000]).sum() == fvcore_macs(small, 9000)


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_a_reduced_model_is_pruned(whole, pruned, options):
    small, full = load(pruned("base", **options)), load(whole("base", **options))
    counts = [MacCounter(each).count([160000]).sum().total for each in (small, full)]
    assert target_of(options) - 0.01 <= counts[0] / counts[1] <= target_of(options)
    check = check_macs([small], 8000)
    assert check["closed_form"] == check["fvcore"]


def test_a_stock_model_becomes_ours(whole, pruned):
    small, full = load(pruned("large", stock=True)), load(whole("large", stock=True))
    assert type(small).__name__ == "SpeedupCtc"
    counts = [MacCounter(each).count([160000]).sum().total for each in (small, full)]
    assert 0.69 <= counts[0] / counts[1] <= 0.7


def test_the_same_audio_gives_the_same_model(whole, pruned, speech, tmp_path, capsys):
    again = tmp_path / "again.pt"
    assert main(prune_command(whole("base"), speech, again, "--target", "0.7")) == 0
    told = capsys.readouterr().out
    assert re.search(r"layer 0: \d of 4 heads, \d+ of 32 units", told)
    assert re.search(r"0\.(69\d|700) of .* largest difference on random audio", told)
    assert "on 0.1 minutes of audio log-probabilities change by at most" in told
    weights = [torch.load(each, weights_only=False)["model"] for each in (again, pruned("base"))]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_activations_choose_other_parts(whole, pruned, speech, tmp_path):
    other = tmp_path / "other.pt"
    options = ["--target", "0.7", "--by", "activation"]
    assert main(prune_command(whole("large"), speech, other, *options)) == 0
    sizes = [pruned_of(load(each).cfg.w2v_args) for each in (other, pruned("large"))]
    assert 0.69 <= sizes[0]["share"] <= 0.7 and sizes[0] != sizes[1]


def test_a_group_norm_cnn_is_given_biases_in_every_form(whole, pruned):
    small = load(pruned("base"))
    sizes = [load(each).cfg.w2v_args.model for each in (whole("base"), pruned("base"))]
    assert [each.conv_bias for each in sizes] == [False, True]
    blocks = small.w2v_encoder.w2v_model.feature_extractor.conv_layers
    assert blocks[0][0].bias.abs().max() == 0 and blocks[3][0].bias.abs().max() > 0
    expected, fast = logits_of(small), copy.deepcopy(small)
    to_inference_form(fast, "fp32")
    torch.testing.assert_close(logits_of(fast), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["base", "wavlm"])
def test_it_is_exported_to_onnx(pruned, tmp_path, kind):
    pytest.importorskip("onnxruntime")
    from fairseq_speedup.export import OnnxModel

    written = tmp_path / "model.onnx"
    assert main(["export", "--path", str(pruned(kind)), "--output", str(written)]) == 0
    source = batch_of([7000])["source"]
    log_probs = torch.as_tensor(OnnxModel(str(written)).log_probs(source.numpy())[0])
    with torch.no_grad():
        logits = load(pruned(kind))(source=source, padding_mask=None)["encoder_out"]
    expected = torch.log_softmax(logits, -1)
    torch.testing.assert_close(log_probs.transpose(0, 1), expected, atol=5e-3, rtol=0)


def test_it_is_a_start_with_its_head_and_inspected(pruned):
    small = load(pruned("base"))
    again = build_model(pruned("base"), num_labels=14, labels=LETTERS)
    torch.testing.assert_close(logits_of(again), logits_of(small), atol=1e-5, rtol=1e-5)
    report = inspect_file(str(pruned("base")))
    assert report["error"] is None and report["use"].endswith("model.w2v_path")
    assert 0.69 <= report["pruned"]["share"] <= 0.7


def test_channels_alone_are_converted_to_hugging_face(whole, speech, tmp_path, capsys):
    pytest.importorskip("transformers")
    state = torch.load(whole("base"), weights_only=False)
    state["model"]["w2v_encoder.proj.weight"] /= 30  # layer norm is float32 in any model
    torch.save(state, tmp_path / "whole.pt")
    written = tmp_path / "pruned.pt"
    options = ["--target", "0.9", "--parts", "channels"]
    assert main(prune_command(tmp_path / "whole.pt", speech, written, *options)) == 0
    assert "heads" not in capsys.readouterr().out
    assert main(["convert", str(written), str(tmp_path / "folder")]) == 0
    assert "largest difference on random audio" in capsys.readouterr().out


def test_it_is_measured_on_a_split(whole, corpus, tmp_path):
    options = ["--data", corpus, "--target", "0.8", "--cpu", "--output", tmp_path / "pruned.pt"]
    assert main(list(map(str, ["prune", whole("base"), *options]))) == 0
    assert 0.79 <= pruned_of(load(tmp_path / "pruned.pt").cfg.w2v_args)["share"] <= 0.8


# -- refusals ------------------------------------------------------------------------------------


def refused(capsys, words) -> str:
    assert main(list(map(str, words))) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "1"], r"--target 1\.0 is out of range; it must be above 0 and below 1"),
        (["--target", "nan"], r"--target nan is out of range"),
        (["--target", "0.01"], r"--target 0\.01 cannot be reached with --parts channels,heads,uni"),
        (["--target", "0.5", "--parts", "layers"], "--parts layers must name some of channels, he"),
        (["--target", "0.5", "--length-seconds", "0"], r"--length-seconds 0\.0 is out of range"),
        (["--target", "0.5", "--minutes", "0"], r"--minutes 0\.0 is out of range"),
        (["--target", "0.5", "--any-share"], "--any-share is for gates that were learned"),
        (
            ["--target", "0.5", "--data", "."],
            "give either --data, a folder with labels, or --audio",
        ),
        (["--target", "0.5", "--minutes", "0.01"], r"too little audio: its 0\.6 s have 29 frames"),
        ([], "--audio and --data are to measure importance on: give --target too"),
    ],
)
def test_options_that_give_nothing_are_refused(whole, speech, tmp_path, capsys, options, words):
    output = tmp_path / "pruned.pt"
    said = refused(capsys, prune_command(whole("base"), speech, output, *options))
    assert re.search(words, said) and not output.exists()


def test_a_target_out_of_reach_says_what_the_smallest_is(whole, speech, tmp_path, capsys):
    given = [whole("base"), speech, tmp_path / "pruned.pt", "--parts", "heads"]
    said = refused(capsys, prune_command(*given, "--target", "0.1"))
    smallest = float(re.search(r"left out ([\d.]+) of its MACs remain", said)[1])
    assert main(prune_command(*given, "--target", str(smallest + 0.001))) == 0
    small, full = load(tmp_path / "pruned.pt"), load(whole("base"))
    counts = [MacCounter(each).count([160000]).sum().total for each in (small, full)]
    assert counts[0] / counts[1] == pytest.approx(smallest, abs=0.0011)


def test_a_split_without_labels_is_refused(whole, corpus, tmp_path, capsys):
    (tmp_path / "dict.ltr.txt").write_text((corpus / "dict.ltr.txt").read_text())
    (tmp_path / "valid.tsv").write_text((corpus / "valid.tsv").read_text())
    options = ["--data", tmp_path, "--target", "0.8", "--output", tmp_path / "pruned.pt"]
    said = refused(capsys, ["prune", whole("base"), *options])
    assert "valid.ltr" in said


def test_without_a_target_or_gates_both_ways_are_named(whole, tmp_path, capsys):
    said = refused(capsys, ["prune", whole("base"), "--output", tmp_path / "pruned.pt"])
    assert "has no gates" in said and "or --target and some minutes of audio" in said


def test_models_that_are_not_for_it_are_refused(
    whole, pruned, speech, tmp_path, capsys, dictionary, pretrained
):
    def said(path, *options):
        given = [path, speech, tmp_path / "again.pt", "--target", "0.9", *options]
        return refused(capsys, prune_command(*given))

    assert "is cut already; give the checkpoint that it was made of" in said(pruned("base"))
    gates = write_finetuned(tmp_path / "gates.pt", pretrained, dictionary, prune_target=0.99)
    assert "has gates of prune_target, which say what is cut" in said(gates)
    fbank = whole("base", frontend="fbank")
    assert "has no CNN to prune channels of" in said(fbank, "--parts", "channels")
    start = write_pretrained(
        tmp_path / "conformer.pt",
        layer_type="conformer",
        attn_type="espnet",
        pos_enc_type="rope",
        depthwise_conv_kernel_size=3,
    )
    conformer = tmp_path / "finetuned.pt"
    write_finetuned(conformer, start, dictionary, layer_type="conformer")
    assert "ConformerLayers; prune works with transformer layers" in said(conformer)
