"""One model of many widths: ordered by importance, trained at many, narrow for good once loaded."""

import json
import re

import pytest
import torch
from helpers.commands import generate, last_checkpoint, log_of, train
from helpers.corpora import letters_dictionary, write_noise
from helpers.models import (
    Labels,
    batch_of,
    build_model,
    finetuned_families,
    load,
    made_once,
    write_pretrained,
)
from omegaconf import OmegaConf, open_dict

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.configs import evaluate
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.inspection.facts import inspect_file
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.models.speedup_ctc import SpeedupCtc
from fairseq_speedup.optimize import candidates
from fairseq_speedup.profiling.fvcore_count import check_macs
from fairseq_speedup.pruning.narrowing import narrow
from fairseq_speedup.pruning.widths import FIELD, widths_of
from fairseq_speedup.speeds import Speed
from fairseq_speedup.tasks.speedup_finetuning import SpeedupFinetuningTask

SIZES = {
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_attention_heads": 4,
    "conv_pos_groups": 2,
}
WIDTHS = [0.8, 0.4]
OF_LITTLE = [0.95, 0.9]  # where much cannot be pruned
KINDS = ["base", "large", "wavlm", "data2vec"]
OTHERS = {
    "layers": {"keep_layers": "0,2"},
    "exits": {"exit_layers": "1"},
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
def ordered(tmp_path_factory, whole, speech):
    """``ordered(kind, **options)``: what ``widths`` makes of it."""

    def make(path, output, options):
        asked = OF_LITTLE if options.keys() & {"frontend", "downsample"} else WIDTHS
        assert main(command(path, speech, output, widths=asked)) == 0

    return made_once(tmp_path_factory.mktemp("ordered"), whole, make)


@pytest.mark.parametrize("kind", ["base", "large"])
def test_channels_of_a_width_are_the_first_of_the_ordered(
    whole, speech, tmp_path, monkeypatch, kind
):
    path = tmp_path / "ordered.pt"
    options = ["--parts", "channels", "--by", "activation"]
    assert main(command(whole(kind), speech, path, *options, widths=[0.97])) == 0
    (each,) = widths_of(load(path).cfg.w2v_args).values()
    assert each.heads is each.units is None and min(each.channels) < 8
    many, narrow_one = at_many(path, monkeypatch), load(path, width=0.97, padding="masked")
    torch.testing.assert_close(
        logits_of(many), logits_of(load(whole(kind), padding="masked")), rtol=1e-4, atol=1e-4
    )
    many.w2v_encoder.speeds.default = Speed(1.0, 1, 3, 0.97)
    torch.testing.assert_close(logits_of(many), logits_of(narrow_one), rtol=1e-4, atol=1e-4)
    assert narrow_one.w2v_encoder.cnn.conv_layers[0][0] == each.channels[0]


def test_a_model_without_a_projection_keeps_its_last_convolution(
    tmp_path, dictionary, speech, monkeypatch
):
    sizes = SIZES | {"conv_feature_layers": "[(48, 10, 5), (48, 20, 2), (24, 4, 4)]"}
    path = finetuned_families(tmp_path, dictionary, sizes)("base")
    output, options = tmp_path / "ordered.pt", ["--parts", "channels"]
    assert main(command(path, speech, output, *options, widths=[0.95, 0.9])) == 0
    (_, each) = widths_of(load(output).cfg.w2v_args).values()
    assert each.channels[-1] == 24 and min(each.channels[:-1]) < 48
    many = at_many(output, monkeypatch)
    many.w2v_encoder.speeds.default = Speed(1.0, 1, 3, 0.9)
    narrow_one = load(output, width=0.9, padding="masked")
    torch.testing.assert_close(logits_of(many), logits_of(narrow_one), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", ["nonsense", 5, [1, 2]])
def test_widths_that_are_no_list_of_sizes_are_refused(ordered, value):
    cfg = load(ordered("base")).cfg
    with open_dict(cfg):
        cfg.w2v_args.encoder_variant.widths = value
    with pytest.raises(CheckpointError, match=f"{FIELD}=.* is no list of widths"):
        widths_of(cfg.w2v_args)


def command(path, speech, output, *options, widths=WIDTHS) -> list[str]:
    words = ["widths", path, "--audio", speech, "--output", output, "--cpu", *options]
    return list(map(str, [*words, "--widths", *widths]))


def at_many(path, monkeypatch):
    """The model of a checkpoint as it is trained: at many widths."""
    build = SpeedupFinetuningTask.build_model

    def in_training(self, model_cfg, from_checkpoint=False):
        with open_dict(model_cfg):
            model_cfg.widths = [1.0, *widths_of(model_cfg.w2v_args)]
            model_cfg._name = "speedup_ctc"
        return super(SpeedupFinetuningTask, self).build_model(model_cfg, from_checkpoint)

    monkeypatch.setattr(SpeedupFinetuningTask, "build_model", in_training)
    model = load(path, padding="masked")
    monkeypatch.setattr(SpeedupFinetuningTask, "build_model", build)
    return model


@torch.no_grad()
def logits_of(model):
    net_input = batch_of([9000, 6000])
    net_input["source"] = net_input["source"].to(next(model.parameters()).dtype)
    output = model.eval()(**net_input)
    return output["encoder_out"][~output["padding_mask"].T]


def macs_of(model) -> int:
    return int(MacCounter(model).count([160000]).sum().total)


@pytest.mark.parametrize("kind", KINDS)
def test_in_another_order_a_model_gives_the_same(whole, ordered, kind):
    """In float64, as sums in another order round otherwise."""
    torch.testing.assert_close(
        logits_of(load(ordered(kind), padding="masked").double()),
        logits_of(load(whole(kind), padding="masked").double()),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_width_has_its_share_and_all_of_the_narrower_ones(whole, ordered, kind):
    of_whole = macs_of(load(whole(kind), padding="masked"))
    before = None
    for width, each in widths_of(load(ordered(kind)).cfg.w2v_args).items():
        model = load(ordered(kind), width=width)
        assert each.share == pytest.approx(width, abs=0.03)
        assert macs_of(model) / of_whole == pytest.approx(each.share, abs=1e-4)
        if before is not None:
            assert all(n <= w for n, w in zip(each.channels, before.channels, strict=True))
            assert all(n <= w for n, w in zip(each.units, before.units, strict=True))
            assert all(set(n) <= set(w) for n, w in zip(each.heads, before.heads, strict=True))
        before = each
    found = check_macs([model], 16000)
    assert found["closed_form"] == found["fvcore"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in KINDS] + [("base", options) for options in OTHERS.values()],
    ids=[*KINDS, *OTHERS],
)
def test_a_loaded_width_is_what_was_trained(ordered, monkeypatch, kind, options):
    path = ordered(kind, **options)
    many = at_many(path, monkeypatch)
    encoder = many.w2v_encoder
    assert len(encoder.speeds.widths) == 3
    outputs = []
    for width in encoder.speeds.widths:
        encoder.speeds.default = Speed(
            encoder.speeds.default.factor,
            encoder.speeds.default.frame_pool,
            encoder.speeds.default.depth,
            width,
        )
        narrow_one = load(path, width=width, padding="masked")
        outputs.append(logits_of(many))
        torch.testing.assert_close(outputs[-1], logits_of(narrow_one), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert not torch.allclose(outputs[1], outputs[2], atol=1e-3)


@pytest.mark.parametrize("kind", ["base", "wavlm"])
def test_a_width_is_a_plain_pruned_model(ordered, kind):
    model = load(ordered(kind), width=0.4, padding="masked")
    expected = logits_of(model)
    to_inference_form(model, "fp32")
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)
    assert model.cfg.width == 1.0 and not widths_of(model.cfg.w2v_args)
    assert model.cfg.w2v_args.encoder_variant.pruned.share == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("kind", ["base", "large"])
def test_as_many_channels_as_the_transformer_has_keep_their_projection(ordered, kind):
    model = load(ordered(kind))
    cfg = model.cfg
    dim = cfg.w2v_args.model.encoder_embed_dim
    (widest, *_) = widths_of(cfg.w2v_args).values()
    with open_dict(cfg):
        cfg._name = "speedup_ctc"
        (given, *_) = cfg.w2v_args.encoder_variant.widths
        layers = evaluate(cfg.w2v_args.model.conv_feature_layers, "")
        layers[-1] = (dim + 8, *layers[-1][1:])
        cfg.w2v_args.model.conv_feature_layers = str(layers)
        given.channels = [*widest.channels[:-1], dim]
        cfg.width = widest.width
    again = SpeedupCtc.build_model(cfg, Labels())
    assert again.w2v_encoder.w2v_model.post_extract_proj.in_features == dim


def test_speeds_of_other_widths_hear_for_themselves(ordered, monkeypatch):
    model = at_many(ordered("base"), monkeypatch).train()
    heard = []
    model.w2v_encoder.w2v_model.feature_extractor.register_forward_hook(lambda *_: heard.append(1))
    speeds = [Speed(1.0, 1, 3, width) for width in (1.0, 0.4, 1.0)]
    with torch.no_grad():
        model(**batch_of([9000, 6000]), speeds=speeds)
    assert len(heard) == 2


def test_inspect_says_the_widths(ordered, capsys):
    report = inspect_file(str(ordered("base")), 10)
    assert [width for width, _ in report["widths"]] == WIDTHS
    assert main(["inspect", str(ordered("base"))]) == 0
    assert re.search(r"widths +0\.8 \(0\.\d+ of its MACs\), 0\.4", capsys.readouterr().out)


def test_optimize_tries_ever_narrower_ones_and_cuts_none_again():
    subject = candidates.Subject(
        kept_layers=[0, 1, 2],
        exits=[],
        can_merge=False,
        can_prune=True,
        many={"width": ([1.0, 0.8, 0.4], 1.0)},
        padding_gets_in=False,
        forms=[],
        engines=[],
        decoder="greedy",
        beam=1,
    )
    first, second = candidates.speeds(candidates.Candidate(), subject)
    assert [first.overrides, second.overrides] == [{"width": 0.8}, {"width": 0.4}]
    assert candidates.pruning(first, subject) == []
    assert candidates.pruning(candidates.Candidate(), subject) != []
    assert candidates.speeds(candidates.Candidate(pruned=0.9), subject) == []


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0.5}, "width=0.5: the model .* has no widths; python -m"),
        ({"widths": [1.0, 0.5]}, r"widths=\[1.0, 0.5\]: the model .* has no widths"),
        ({"width": 0.0}, "width=0.0 is out of range"),
        ({"width": 1.5}, "width=1.5 is out of range"),
        ({"widths": [1.0, 2.0]}, "each must be above 0 and at most 1"),
        ({"widths": [1.0, 0.5, 0.5]}, "named once"),
        ({"widths": [0.7, 0.5]}, "add 1 to widths"),
        ({"width": 0.5, "widths": [1.0, 0.5]}, "leave width out"),
        ({"widths": [1.0, 0.5], "prune_target": 0.5}, "gates would cut what widths order"),
        ({"widths": [1.0, 0.5], "ddp_backend": "fully_sharded"}, "legacy_ddp or c10d"),
    ],
)
def test_widths_that_mean_nothing_are_refused_in_words(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        build_model(write_pretrained(tmp_path / "pretrained.pt"), **options)


def test_a_width_that_was_not_made_is_refused_with_those_that_were(ordered):
    with pytest.raises(
        ValueError, match=r"width=0.7: the model .* has no widths but 0.8, 0.4 and the whole"
    ):
        load(ordered("base"), width=0.7)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("channels", [1]),
        ("channels", [0] * 7),
        ("units", [10**9] * 3),
        ("heads", [[0], [3, 1], [9]]),
        ("units", 5),
        ("width", 3.0),
        ("share", "abc"),
        ("other", 1),
    ],
)
def test_sizes_that_a_model_cannot_have_are_refused_by_name(ordered, part, value):
    cfg = load(ordered("base")).cfg
    with open_dict(cfg):
        given = OmegaConf.to_container(cfg.w2v_args.encoder_variant.widths)
        given[0][part] = value
        cfg.w2v_args.encoder_variant.widths = given
        cfg.width = 0.8
    with pytest.raises(CheckpointError, match=f"{FIELD}.*{part}"):
        narrow(cfg)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--widths", "1.2"], "--widths 1.2 is out of range"),
        (["--widths", "0.5", "0.5"], "--widths 0.5 0.5 repeats one"),
        (["--widths", "0.01"], "--widths 0.01 cannot be reached with --parts"),
        (["--parts", "ears"], "--parts ears must name some of channels, heads, units"),
        (["--length-seconds", "0"], "--length-seconds 0.0 is out of range"),
    ],
)
def test_arguments_that_mean_nothing(whole, speech, tmp_path, capsys, options, words):
    output = tmp_path / "out.pt"
    assert main(command(whole("base"), speech, output, "--minutes", "1") + options) == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_a_cut_model_has_no_widths_any_more(ordered, speech, tmp_path):
    output = tmp_path / "pruned.pt"
    words = ["prune", ordered("base"), "--target", "0.7", "--audio", speech, "--output", output]
    assert main([*map(str, words), "--cpu"]) == 0
    cfg = load(output).cfg
    assert not widths_of(cfg.w2v_args) and cfg.w2v_args.encoder_variant.pruned
    assert main(command(output, speech, tmp_path / "again.pt")) == 1


# -- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus, ordered):
    """A run at three widths and two pools, in place."""
    folder = tmp_path_factory.mktemp("trained")
    train(
        folder,
        corpus,
        ordered("base"),
        "criterion._name=ctc_in_place_distillation",
        "model.widths=[1,0.8,0.4]",
        "model.frame_pools=[1,2]",
        "optimization.max_update=6",
    )
    return folder


def test_training_runs_every_width_and_the_checkpoint_decodes_at_each(trained, corpus, tmp_path):
    log = log_of(trained)
    assert "loss_at_pool_1_width_1" in log and "loss_at_pool_2_width_0.4" in log
    macs = {}
    for width in (1.0, 0.8, 0.4):
        results = tmp_path / str(width)
        overrides = ["--model-overrides", f"{{'width': {width}}}"]
        generate(corpus, last_checkpoint(trained), results, *overrides)
        compute = json.loads((results / "compute.json").read_text())
        assert compute["macs_check"]["closed_form"] == compute["macs_check"]["fvcore"]
        macs[width] = compute["macs_per_second"]
    assert 1 > macs[0.8] / macs[1.0] > macs[0.4] / macs[1.0] > 0.35


def test_one_width_is_trained_on_and_resumed(ordered, corpus, tmp_path):
    for updates in (2, 4):
        train(
            tmp_path, corpus, ordered("base"), "model.width=0.4",
            f"optimization.max_update={updates}",
        )  # fmt: skip
    model = load(last_checkpoint(tmp_path))
    assert macs_of(model) == macs_of(load(ordered("base"), width=0.4))
    assert "loaded checkpoint" in log_of(tmp_path).lower()
