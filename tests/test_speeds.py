"""One model, many speeds: what is drawn, and that each speed is what a model of it would be."""

from collections import Counter

import pytest
import torch
from helpers.models import batch_of, build_model, write_pretrained

from fairseq_speedup.speeds import Speed

COUNTS = [9000, 5000]
MANY = {
    "downsample": "conv",
    "downsample_factor": 2.0,
    "downsample_factors": [1.0, 2.0, 3.0],
    "frame_pools": [1, 2],
    "depths": [2, 4],
}


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("four") / "four.pt", encoder_layers=4)


def test_draws_are_even_and_the_same_for_the_same_update(four_layers):
    speeds = build_model(four_layers, **MANY).w2v_encoder.speeds
    drawn = [speeds.drawn(update) for update in range(1200)]
    assert (
        drawn
        == [
            build_model(four_layers, **MANY).w2v_encoder.speeds.drawn(update) for update in range(3)
        ]
        + drawn[3:]
    )
    counts = Counter(drawn)
    assert len(counts) == 12
    assert min(counts.values()) > 60


@torch.no_grad()
def test_training_runs_the_speed_that_is_drawn(four_layers):
    model = build_model(four_layers, **MANY).train()
    encoder = model.w2v_encoder
    seen = []
    for layer in encoder.w2v_model.encoder.layers._modules.values():
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].size(0)))
    for update in range(12):
        model.set_num_updates(update)
        seen.clear()
        logits = model(**batch_of(COUNTS))["encoder_out"]
        speed = encoder.speeds.drawn(update)
        single = build_model(
            four_layers,
            downsample="conv" if speed.factor > 1 else "none",
            downsample_factor=speed.factor,
        ).w2v_encoder
        frames = single.output_lengths(max(COUNTS))
        assert logits.size(0) == frames
        pooled = -(-frames // speed.frame_pool)
        assert seen == [pooled + pooled % 2] * speed.depth


@torch.no_grad()
@pytest.mark.parametrize(
    "chosen",
    [
        {"downsample_factor": 1.0},
        {"downsample_factor": 3.0},
        {"frame_pool": 2},
        {"keep_layers": "2"},
        {"downsample_factor": 3.0, "frame_pool": 2, "keep_layers": "2"},
    ],
)
def test_one_checkpoint_at_each_speed_equals_a_model_of_that_speed(four_layers, chosen):
    many = build_model(four_layers, **MANY)
    for parameter in many.w2v_encoder.waveform_reduction.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.01)
    at_speed = build_model(four_layers, seed=7, **(MANY | chosen))
    at_speed.load_state_dict(many.state_dict())
    factor = chosen.get("downsample_factor", 2.0)
    single = build_model(
        four_layers,
        seed=8,
        downsample="conv" if factor > 1 else "none",
        downsample_factor=factor,
        frame_pool=chosen.get("frame_pool", 1),
        keep_layers=chosen.get("keep_layers", "all"),
    )
    own = f"waveform_reduction.reductions.{factor:g}."
    weights = {k.replace(own, "waveform_reduction."): v for k, v in many.state_dict().items()}
    wanted = single.state_dict().keys()
    single.load_state_dict({k: v for k, v in weights.items() if k in wanted})
    net_input = batch_of(COUNTS)
    found = at_speed(**net_input)["encoder_out"]
    assert torch.equal(found, single(**net_input)["encoder_out"])


def test_checks_before_training_are_made_for_the_fastest_speed(four_layers):
    encoder = build_model(four_layers, **(MANY | {"downsample_factor": 1.0})).w2v_encoder
    third = build_model(four_layers, downsample="conv", downsample_factor=3.0).w2v_encoder
    assert encoder.ctc_lengths(9000) == third.output_lengths(9000) < encoder.output_lengths(9000)
    assert encoder.needed_samples(any_speed=True) == third.needed_samples()
    assert encoder.needed_samples() < third.needed_samples()


def test_what_is_evaluated_is_checked_for_its_own_speed(four_layers):
    third = build_model(four_layers, **(MANY | {"downsample_factor": 3.0})).w2v_encoder
    whole = build_model(four_layers, **(MANY | {"downsample_factor": 1.0})).w2v_encoder
    for encoder in (third, whole):
        assert encoder.ctc_lengths(9000, any_speed=False) == encoder.output_lengths(9000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"downsample_factors": [1.0, 2.0]}, r"downsample_factors=\[1.0, 2.0\] needs a method"),
        (
            {"downsample": "conv", "downsample_factors": [2.0, 3.0]},
            r"downsample_factor=1.0 is not among downsample_factors=\[2.0, 3.0\]",
        ),
        (
            {"downsample": "conv", "downsample_factors": [1.0, 2.5]},
            "downsample=conv needs a whole downsample_factor",
        ),
        ({"downsample": "conv", "downsample_factors": [1.0, 1.0]}, "named once"),
        ({"downsample": "conv", "downsample_factors": [1.0, 0.5]}, "must be 1 or more"),
        ({"frame_pools": [2, 3]}, r"frame_pool=1 is not among frame_pools=\[2, 3\]"),
        ({"frame_pools": [1, 65]}, r"frame_pools=\[1, 65\] is out of range: each must be 1 to 64"),
        ({"depths": [2, 3]}, r"depths=\[2, 3\] does not hold 4, the layers that the model keeps"),
        ({"depths": [0, 4]}, r"depths=\[0, 4\]: each must be 1 or more"),
        ({"depths": [4, 12]}, "the model has 4 layers"),
    ],
)
def test_speeds_that_mean_nothing_are_refused_in_words(four_layers, options, words):
    with pytest.raises(ValueError, match=words):
        build_model(four_layers, **options)


@torch.no_grad()
def test_a_depth_merges_and_exits_in_training_as_it_does_when_it_is_kept(four_layers):
    options = {"depths": [2, 4], "merge_ratio": 0.3, "merge_layers": "1,2", "exit_layers": "0,2"}
    many = build_model(four_layers, **options)
    kept = build_model(four_layers, seed=9, **(options | {"keep_layers": "2"}))
    kept.load_state_dict(many.state_dict())
    many.w2v_encoder.speeds.default = Speed(1.0, 1, 2)
    net_input = batch_of(COUNTS)
    assert torch.equal(many(**net_input)["encoder_out"], kept(**net_input)["encoder_out"])
