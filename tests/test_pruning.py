"""Structured pruning: what gates close can be cut out, and nothing else changes."""

import copy
import re

import pytest
import torch
from helpers.commands import generate_here, train
from helpers.corpora import LETTERS, letters_dictionary
from helpers.models import (
    Labels,
    batch_of,
    build_model,
    load,
    write_finetuned,
    write_pretrained,
    write_wavlm,
)
from omegaconf import OmegaConf

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.criterions import CtcPruningConfig, CtcPruningCriterion
from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.fvcore_count import check_macs, fvcore_macs
from fairseq_speedup.pruning.cut import cut
from fairseq_speedup.pruning.hard_concrete import HardConcrete
from fairseq_speedup.pruning.sizes import pruned_of

COUNTS = [9000, 6000]
SIZES = {
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_attention_heads": 4,
    "conv_pos_groups": 2,
}
KINDS = {
    "base": {},
    "large": {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True},
    "data2vec": {"extractor_mode": "layer_norm", "pos_conv_depth": 2},
}
OTHERS = {
    "alone": {},
    "conv": {"downsample": "conv", "downsample_factor": 2.0},
    "signal": {"downsample": "signal", "downsample_factor": 1.5},
    "layers": {"keep_layers": "0,2", "exit_layers": "0"},
    "fbank": {"frontend": "fbank"},
    "pool_merge": {"frame_pool": 2, "merge_ratio": 0.2},
    "exits": {"exit_layers": "1", "exit_criterion": "entropy", "exit_threshold": 2.6},
    "depths": {"depths": [2, 3]},
    "head": {"head": "bilstm", "head_dim": 6, "logit_upsample": 2},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A pretrained model of a kind."""
    folder, made = tmp_path_factory.mktemp("start"), {}

    def of(kind: str):
        if kind not in made:
            options = {"extractor_mode": "default"} | SIZES | KINDS[kind]
            made[kind] = write_pretrained(folder / f"{kind}.pt", **options)
        return made[kind]

    return of


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    """A WavLM in Microsoft's form, whose bias tables and gates are not all alike."""
    return write_wavlm(tmp_path_factory.mktemp("wavlm") / "wavlm.pt", encoder_attention_heads=4)


@torch.no_grad()
def scatter(model, seed: int = 0, empty: bool = True) -> None:
    """Opens some of a model's gates and closes others; of one layer all heads, of one all units."""
    generator = torch.Generator().manual_seed(seed)
    gates = model.w2v_encoder.pruning
    for gate in gates.all():
        gate.score.copy_(torch.randn(gate.size, generator=generator) * 2 / gate.lr_scale)
    if empty:
        first, *_, last = gates.heads
        gates.heads[first].score.fill_(-10 / gates.heads[first].lr_scale)
        gates.units[last].score.fill_(-10 / gates.units[last].lr_scale)


@torch.no_grad()
def logits_of(model, counts=tuple(COUNTS)):
    output = model.eval()(**batch_of(list(counts)))
    return output["encoder_out"]


def gated(path, seed: int = 0, **options):
    model = build_model(path, **{"prune_target": 0.97, "feature_grad_mult": 1.0} | options)
    scatter(model, seed)
    return model


# -- gates ---------------------------------------------------------------------------------------


def test_a_gate_is_open_as_often_as_it_says():
    torch.manual_seed(0)
    gate = HardConcrete(6, lr_scale=50.0)
    with torch.no_grad():
        gate.score.copy_(torch.tensor([-4.0, -2.0, -1.0, 0.0, 1.0, 3.0]) / 50)
    values = torch.stack([_drawn(gate) for _ in range(4000)])
    torch.testing.assert_close(
        (values > 0).float().mean(dim=0), gate.open_probs(), atol=0.03, rtol=0
    )
    assert values.min() == 0 and values.max() == 1
    gate.settle(2)
    assert gate.values.nonzero()[:, 0].tolist() == [4, 5]


def _drawn(gate):
    gate.draw()
    return gate.values.detach()


def test_an_update_by_adam_moves_a_gate_lr_scale_times_as_far_as_a_weight():
    gate, weight = HardConcrete(1, lr_scale=50.0), torch.nn.Parameter(torch.zeros(1))
    before = gate.logits().item()
    optimizer = torch.optim.Adam([gate.score, weight], lr=1e-3)
    (1000 * gate.logits().sum() + weight.sum()).backward()
    optimizer.step()
    assert before - gate.logits().item() == pytest.approx(50 * -weight.item(), rel=1e-3)


# -- closed form ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_expected_macs_are_those_of_the_profile_once_cut(start, options):
    model = gated(start("base"), prune_length_seconds=0.7, **options)
    gates = model.w2v_encoder.pruning
    share, macs, num_samples = gates.share_once_cut(), gates.macs, gates.num_samples
    assert num_samples == 11200
    assert macs.full == MacCounter(model).count([num_samples]).sum().total
    whole = macs.of(macs.full_channels, macs.full_heads, macs.full_units)
    assert whole == macs.full
    expected = gates.share().item()
    cut(model)
    count = MacCounter(model).count([num_samples]).sum().total
    assert count / macs.full == pytest.approx(share, abs=1e-9)
    assert expected - 0.03 < share < expected + 1e-6  # of whole numbers
    check = check_macs([model], num_samples)
    assert check["closed_form"] == check["fvcore"]


def test_every_stage_of_a_cut_wavlm_is_counted_as_fvcore_counts_it(wavlm):
    model = gated(wavlm)
    cut(model)
    assert MacCounter(model).count([8000]).sum() == fvcore_macs(model, 8000)


# -- cutting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_model_of_any_kind_gives_what_its_gates_gave(start, kind):
    model = gated(start(kind))
    expected, whole = logits_of(model), sum(p.numel() for p in model.parameters())
    cut(model)
    assert sum(p.numel() for p in model.parameters()) < 0.8 * whole
    assert not any("pruning" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(logits_of(model), expected, atol=2e-5, rtol=0)


def test_a_cut_wavlm_keeps_the_bias_of_its_heads(wavlm):
    model = gated(wavlm, seed=1)
    expected = logits_of(model)
    cut(model)
    torch.testing.assert_close(logits_of(model), expected, atol=2e-5, rtol=0)
    kept = pruned_of(model.cfg.w2v_args)["heads"]
    assert kept[0] == [] and 0 < len(kept[1]) < 4
    assert model.w2v_encoder.w2v_model.encoder.layers[1].self_attn.grep_a.size(1) == len(kept[1])


def finetuned(path, start, dictionary=None, seed=0, **options):
    """A checkpoint with gates that are open and closed."""
    if dictionary is None:
        dictionary = letters_dictionary()
    write_finetuned(path, start, dictionary, prune_target=0.97, **options)
    state = torch.load(path, weights_only=False)
    model = build_model(start, num_labels=len(dictionary), prune_target=0.97, **options)
    scatter(model, seed)
    scores = {n: w for n, w in model.state_dict().items() if n.startswith("w2v_encoder.pruning.")}
    state["model"].update(scores)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def cut_file(tmp_path_factory, start):
    """A checkpoint with gates of the large kind, and what ``prune`` makes of it."""
    folder = tmp_path_factory.mktemp("cut")
    whole = finetuned(folder / "gates.pt", start("large"))
    assert main(["prune", str(whole), "--output", str(folder / "cut.pt"), "--any-share"]) == 0
    return whole, folder / "cut.pt"


@pytest.mark.parametrize(
    ("further", "message"),
    [(0.15, None), (0.25, "the gates ran past it"), (-0.05, None), (-0.15, "too early")],
)
def test_gates_are_moved_to_a_target_that_they_are_near(start, tmp_path, capsys, further, message):
    whole, written = finetuned(tmp_path / "gates.pt", start("large")), tmp_path / "cut.pt"
    share = load(whole).w2v_encoder.pruning.share_once_cut()
    state = torch.load(whole, weights_only=False)
    state["cfg"]["model"]["prune_target"] = share + further
    torch.save(state, whole)
    status = main(["prune", str(whole), "--output", str(written)])
    if message is not None:
        assert status == 1 and message in capsys.readouterr().err
        assert not written.exists()
        return
    assert status == 0
    kept = pruned_of(torch.load(written, weights_only=False)["cfg"]["model"]["w2v_args"])["share"]
    assert abs(kept - share - further) < abs(further) / 2


@pytest.mark.parametrize("name", OTHERS)
def test_prune_writes_a_model_that_loads_by_itself_and_gives_the_same(
    start, tmp_path, capsys, name
):
    whole = finetuned(tmp_path / "gates.pt", start("base"), **OTHERS[name])
    written = tmp_path / "cut.pt"
    assert main(["prune", str(whole), "--output", str(written), "--any-share"]) == 0
    told = capsys.readouterr().out
    assert "layer 0: " in told and f"wrote {written}" in told
    model, small = load(whole), load(written)
    torch.testing.assert_close(logits_of(small), logits_of(model), atol=3e-5, rtol=1e-5)
    assert small.cfg.prune_target == 1.0 and small.cfg.keep_layers == "all"
    check = check_macs([small], 8000)
    assert check["closed_form"] == check["fvcore"]
    assert written.stat().st_size < whole.stat().st_size


@torch.no_grad()
def test_what_follows_a_layer_follows_it_where_others_are_cut(tmp_path):
    six = write_pretrained(tmp_path / "six.pt", **(SIZES | {"encoder_layers": 6}))
    options = {
        **{"keep_layers": "0,2,3,5", "merge_ratio": 0.2, "merge_layers": "0,2"},
        **{"exit_layers": "2,3", "exit_criterion": "layer", "exit_threshold": 3.0},
        **{"drop_frames": "blank", "drop_layers": "2", "drop_threshold": 0.5},
    }
    whole, written = finetuned(tmp_path / "gates.pt", six, **options), tmp_path / "cut.pt"
    state = torch.load(whole, weights_only=False)
    state["model"]["w2v_encoder.exit_heads.2.weight"] /= 24  # many frames are blank
    torch.save(state, whole)
    assert main(["prune", str(whole), "--output", str(written), "--any-share"]) == 0
    model, small = load(whole), load(written)
    found, expected = (each(**batch_of(COUNTS)) for each in (small, model))
    frames = expected["layer_frames"]
    merged = [model.w2v_encoder.stages[-1].lengths_after(2, n) for n in frames[:, 1].tolist()]
    assert (frames[:, 2] < torch.tensor(merged)).all() and not frames[:, 3].any()
    assert found["layer_frames"].tolist() == frames.tolist()
    valid = ~expected["padding_mask"].T
    torch.testing.assert_close(
        found["encoder_out"][valid], expected["encoder_out"][valid], atol=3e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["base", "large"])
def test_every_inference_form_of_gates_is_that_of_the_cut_model(start, kind):
    model = gated(start(kind))
    expected = logits_of(model)
    forms = [copy.deepcopy(model), copy.deepcopy(model)]
    cut(forms[1])
    for form in forms:
        to_inference_form(form, "fp32")
        found = logits_of(form)
        valid = model(**batch_of(COUNTS))["padding_mask"].logical_not().T
        torch.testing.assert_close(found[valid], expected[valid], atol=1e-4, rtol=0)
        assert MacCounter(form).count([8000]).sum() == MacCounter(forms[1]).count([8000]).sum()


def test_an_inference_form_of_a_cut_wavlm_gives_the_same(wavlm):
    model = gated(wavlm)
    expected = logits_of(model, [9000])
    to_inference_form(model, "fp32")
    torch.testing.assert_close(logits_of(model, [9000]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["base", "large", "wavlm"])
def test_a_pruned_model_is_exported_to_onnx(start, wavlm, tmp_path, kind):
    pytest.importorskip("onnxruntime")
    from fairseq_speedup.export import OnnxModel

    whole = finetuned(tmp_path / "gates.pt", wavlm if kind == "wavlm" else start(kind))
    written = tmp_path / "model.onnx"
    # compared with the model in ONNX Runtime before it is written
    assert main(["export", "--path", str(whole), "--output", str(written)]) == 0
    net_input = batch_of([7000])
    source = net_input["source"]
    file = OnnxModel(str(written))
    log_probs = torch.as_tensor(file.log_probs(source.numpy())[0])  # (B, T, V)
    expected = torch.log_softmax(load(whole)(source=source, padding_mask=None)["encoder_out"], -1)
    torch.testing.assert_close(log_probs.transpose(0, 1), expected, atol=1e-3, rtol=0)
    assert file.metadata.reductions == {}


# -- what a cut checkpoint is good for -----------------------------------------------------------


def test_inspect_tells_the_sizes(cut_file):
    whole, written = cut_file
    report = inspect_file(str(written))
    assert report["error"] is None and report["reductions"] == {}
    pruned = report["pruned"]
    assert pruned["heads"][0] == [] and pruned["units"][2] < 4
    assert report["use"].endswith("model.w2v_path")
    assert report["parameters"] < inspect_file(str(whole))["parameters"]


def test_a_cut_model_is_a_start_with_its_head_and_can_be_reduced(cut_file):
    _, written = cut_file
    small = load(written)
    again = build_model(written, num_labels=14, labels=LETTERS)
    torch.testing.assert_close(logits_of(again), logits_of(small), atol=1e-6, rtol=0)
    fewer = build_model(written, num_labels=14, labels=LETTERS, keep_layers="1,2")
    layer = fewer.w2v_encoder.w2v_model.encoder.layers[1]
    assert layer.fc1.out_features < 4
    check = check_macs([fewer], 8000)
    assert check["closed_form"] == check["fvcore"]


def test_layers_of_several_sizes_are_refused_by_hugging_face(cut_file, tmp_path, capsys):
    pytest.importorskip("transformers")
    _, written = cut_file
    assert main(["convert", str(written), str(tmp_path / "folder")]) == 1
    assert "is pruned: its layers have heads and units in several" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["base", "large"])
def test_channels_alone_are_converted_to_hugging_face(start, tmp_path, kind, capsys):
    pytest.importorskip("transformers")
    model = build_model(start(kind), prune_target=0.97, prune_parts="channels")
    dictionary = letters_dictionary()
    whole = tmp_path / "gates.pt"
    write_finetuned(whole, start(kind), dictionary, prune_target=0.97, prune_parts="channels")
    state = torch.load(whole, weights_only=False)
    scatter(model, empty=False)
    names = [name for name in model.state_dict() if ".pruning." in name]
    state["model"].update({name: model.state_dict()[name] for name in names})
    state["model"]["w2v_encoder.proj.weight"] /= 30  # layer norm is float32 in any model
    torch.save(state, whole)
    written = tmp_path / "cut.pt"
    assert main(["prune", str(whole), "--output", str(written), "--any-share"]) == 0
    assert main(["convert", str(written), str(tmp_path / "folder")]) == 0
    from transformers import AutoModelForCTC

    there = AutoModelForCTC.from_pretrained(tmp_path / "folder")
    assert min(there.config.conv_dim) < 8
    assert "largest difference on random audio" in capsys.readouterr().out


def test_sizes_that_the_layers_cannot_have_are_refused(cut_file, tmp_path):
    _, written = cut_file
    for sizes, words in [
        ({"heads": [[0, 9], [0], [0]]}, ".heads: for layer 0"),
        ({"heads": [[0]]}, ".heads: for layer 1 it has None"),
        ({"units": [10**9, 1, 1]}, ".units: for layer 0 it has 1000000000"),
    ]:
        state = torch.load(written, weights_only=False)
        state["cfg"]["model"]["w2v_args"]["encoder_variant"]["pruned"].update(sizes)
        torch.save(state, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=re.escape(words)):
            load(tmp_path / "bad.pt")


# -- training ------------------------------------------------------------------------------------


def sample_of(labels: int = 14) -> dict:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(4, labels, (2, 5), generator=generator)
    target[1, 4] = 1  # padding
    return {
        "id": torch.arange(2),
        "net_input": batch_of([4000, 3000]),
        "target": target,
        "target_lengths": torch.tensor([5, 4]),
        "ntokens": 9,
    }


def criterion_of() -> CtcPruningCriterion:
    task = Labels()
    task.blank_symbol = "<s>"
    return CtcPruningCriterion(
        OmegaConf.structured(CtcPruningConfig(zero_infinity=True, sentence_avg=False)), task
    )


def test_training_comes_near_the_target_and_it_is_met(start):
    torch.manual_seed(0)
    model = build_model(
        start("base"),
        prune_target=0.6,
        prune_lr_scale=50.0,
        prune_warmup_updates=60,
        feature_grad_mult=1.0,
    ).train()
    criterion, sample = criterion_of(), sample_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    shares = []
    for update in range(240):
        model.set_num_updates(update)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (240 - update) / 120)
        optimizer.zero_grad()
        loss, sample_size, log = criterion(model, sample)
        (loss / sample_size).backward()
        optimizer.step()
        shares.append(log["pruning_share"] / sample_size)
        if update == 30:  # the share is above its target
            assert model.w2v_encoder.pruning.multipliers.min() > 0
    assert shares[0] > 0.98
    gates = model.w2v_encoder.pruning
    assert gates.target(30) == pytest.approx(0.8) and gates.target(10**6) == 0.6
    assert shares[-1] == pytest.approx(0.6, abs=0.06)
    gates.meet_target()
    cut(model.eval())
    count = MacCounter(model).count([gates.num_samples]).sum().total
    assert count / gates.macs.full == pytest.approx(0.6, abs=0.025)  # one head is 0.05


def test_the_loss_waits_for_weights_that_are_frozen(start):
    model = build_model(
        start("base"), prune_target=0.6, prune_warmup_updates=10, freeze_finetune_updates=5
    ).train()
    gates = model.w2v_encoder.pruning
    with torch.no_grad():
        gates.multipliers.fill_(1.0)
    model.set_num_updates(4)
    assert float(criterion_of()(model, sample_of())[2]["pruning_loss"]) == 0
    assert gates.target(4) == 1
    model.set_num_updates(10)
    assert float(criterion_of()(model, sample_of())[2]["pruning_loss"]) != 0
    assert gates.target(10) == pytest.approx(0.8)


def test_a_frozen_cnn_stays_as_it_is_and_its_gates_learn(start, caplog):
    model = build_model(start("large"), prune_target=0.6).train()
    assert "feature_grad_mult=1 trains it" in caplog.text
    scatter(model)
    loss, _, _ = criterion_of()(model, sample_of())
    loss.backward()
    encoder = model.w2v_encoder
    assert all(p.grad is None for p in encoder.w2v_model.feature_extractor.parameters())
    assert encoder.pruning.channels["0"].score.grad.abs().sum() > 0


def test_a_broken_off_training_goes_on_to_the_same_gates_and_is_cut_and_decoded(
    tmp_path, corpus, start, capsys
):
    options = [
        "criterion._name=ctc_pruning",
        "model.prune_target=0.8",
        "model.prune_warmup_updates=2",
        "model.prune_lr_scale=1000",
        "model.freeze_finetune_updates=0",
        "model.feature_grad_mult=1.0",
        "optimization.lr=[0.001]",
        "lr_scheduler._name=fixed",
        "~lr_scheduler.phase_ratio",
        "~lr_scheduler.final_lr_scale",
        "dataset.disable_validation=true",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, corpus, start("base"), *options, "checkpoint.save_interval_updates=2")
    (parts / "checkpoints").mkdir(parents=True)
    (half,) = (whole / "checkpoints").glob("checkpoint_*_2.pt")
    half.rename(parts / "checkpoints/checkpoint_last.pt")
    train(parts, corpus, start("base"), *options)
    expected, found = (
        torch.load(each / "checkpoints/checkpoint_last.pt", weights_only=False)["model"]
        for each in (whole, parts)
    )
    scores = [name for name in expected if name.startswith("w2v_encoder.pruning.")]
    assert any(name.endswith("multipliers") for name in scores)
    moved = [expected[name] for name in scores if name.endswith("multipliers")]
    assert moved[0].abs().sum() > 0
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-7, rtol=1e-6)

    last = str(whole / "checkpoints/checkpoint_last.pt")
    assert main(["prune", last, "--output", str(tmp_path / "cut.pt")]) == 1
    assert "prune_target is 0.8" in capsys.readouterr().err  # four updates are not enough
    assert main(["prune", last, "--output", str(tmp_path / "cut.pt"), "--any-share"]) == 0
    generate_here(corpus, tmp_path / "cut.pt", tmp_path / "results")
    assert (tmp_path / "results/compute.json").exists()


def test_the_stock_criterion_is_refused(tmp_path, corpus, start):
    from fairseq_speedup.config import SpeedupCtcConfig  # noqa: F401
    from fairseq_speedup.tasks.speedup_finetuning import (
        SpeedupFinetuningConfig,
        SpeedupFinetuningTask,
    )

    task = SpeedupFinetuningTask(OmegaConf.structured(SpeedupFinetuningConfig(data=str(corpus))))
    task.has_gates = True
    with pytest.raises(ValueError, match=r"set criterion\._name=ctc_pruning or ctc_exits or"):
        task.build_criterion(OmegaConf.create({"_name": "ctc"}))


REFUSED = [
    ({"prune_target": 0.0}, "prune_target=0.0 is out of range"),
    ({"prune_target": 1.5}, "prune_target=1.5 is out of range"),
    ({"prune_parts": "layers"}, "prune_parts=layers must name some of channels, heads, units"),
    ({"prune_warmup_updates": -1}, "prune_warmup_updates=-1 is out of range"),
    ({"prune_lr_scale": 0.0}, "prune_lr_scale=0.0 is out of range"),
    ({"prune_target": 0.5, "prune_length_seconds": 0.0}, "prune_length_seconds=0.0"),
    ({"prune_target": 0.02}, "prune_target=0.02 cannot be reached"),
    (
        {"prune_target": 0.5, "exit_layers": "1", "exit_heads_only": True},
        "exit_heads_only=true freezes",
    ),
    ({"prune_target": 0.5, "ddp_backend": "fully_sharded"}, "ddp_backend=fully_sharded"),
    (
        {"prune_target": 0.5, "frontend": "fbank", "prune_parts": "channels"},
        "prune_parts=channels prunes a CNN",
    ),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_in_words(start, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        build_model(start("base"), **options)


def test_a_target_out_of_reach_says_what_the_smallest_is(start):
    with pytest.raises(ValueError, match=r"with all of that left out 0\.\d+ of") as refused:
        build_model(start("base"), prune_target=0.1, prune_parts="heads")
    smallest = float(re.search(r"left out ([\d.]+) of", str(refused.value))[1])
    model = build_model(start("base"), prune_target=smallest + 0.01, prune_parts="heads")
    with torch.no_grad():
        for gate in model.w2v_encoder.pruning.all():
            gate.score.fill_(-10 / gate.lr_scale)
    num_samples, full = model.w2v_encoder.pruning.num_samples, model.w2v_encoder.pruning.macs.full
    cut(model)
    count = MacCounter(model).count([num_samples]).sum().total
    assert count / full == pytest.approx(smallest, abs=1e-3)


def test_a_cut_model_is_not_cut_again(cut_file, tmp_path, capsys):
    _, written = cut_file
    with pytest.raises(ValueError, match="is cut already"):
        build_model(written, num_labels=14, labels=LETTERS, prune_target=0.5)
    assert main(["prune", str(written), "--output", str(tmp_path / "again.pt")]) == 1
    assert "is cut already" in capsys.readouterr().err


def test_a_model_without_gates_is_not_cut(tmp_path, start, capsys):
    dictionary = letters_dictionary()
    whole = write_finetuned(tmp_path / "whole.pt", start("base"), dictionary)
    assert main(["prune", str(whole), "--output", str(tmp_path / "cut.pt")]) == 1
    assert "has no gates" in capsys.readouterr().err


def test_a_conformer_is_refused(tmp_path):
    path = write_pretrained(
        tmp_path / "conformer.pt",
        layer_type="conformer",
        attn_type="espnet",
        pos_enc_type="rope",
        depthwise_conv_kernel_size=3,
    )
    with pytest.raises(ValueError, match="prunes transformer layers; this model has Conformer"):
        build_model(path, layer_type="conformer", prune_target=0.5)


def test_gates_of_another_lr_scale_are_the_same_gates(start, tmp_path):
    whole = finetuned(tmp_path / "gates.pt", start("base"))
    one, other = load(whole), load(whole, prune_lr_scale=20.0)
    assert other.w2v_encoder.pruning.heads["1"].lr_scale == 20.0
    torch.testing.assert_close(logits_of(other), logits_of(one), atol=1e-3, rtol=1e-3)
