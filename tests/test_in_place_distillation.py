"""One model of many speeds, of which the slowest teaches the others in every update."""

import json
import re
import shutil
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers.commands import last_checkpoint, log_of, train
from helpers.models import Labels, batch_of, build_model, task_of, write_pretrained
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from fairseq_speedup.criterions import (
    CtcExitsConfig,
    CtcExitsCriterion,
    CtcInPlaceDistillationConfig,
    CtcInPlaceDistillationCriterion,
)
from fairseq_speedup.criterions.distillation import HeadFrames, posterior_distance
from fairseq_speedup.speeds import Speed

COUNTS = [9000, 6000]
POOLS = {"frame_pools": [1, 2, 3]}
MANY = {
    "downsample": "conv",
    "downsample_factor": 2.0,
    "downsample_factors": [1.0, 2.0],
    "frame_pools": [1, 2],
    "depths": [2, 4],
}


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("four") / "four.pt", encoder_layers=4)


def criterion_of(model, kind=CtcInPlaceDistillationCriterion, **options):
    task = Labels()
    task.blank_symbol = "<s>"
    task.speeds = model.w2v_encoder.speeds
    in_place = kind is CtcInPlaceDistillationCriterion
    config = CtcInPlaceDistillationConfig if in_place else CtcExitsConfig
    return kind(OmegaConf.structured(config(sentence_avg=True, **options)), task)


def sample_of(counts=COUNTS):
    return {
        "id": torch.arange(len(counts)),
        "net_input": batch_of(counts),
        "target": torch.tensor([[5, 6, 7], [8, 9, 1]]),  # 1 is padding
        "target_lengths": torch.tensor([3, 2]),
        "ntokens": 5,
    }


def at_speed(model, speed: Speed):
    """A training forward of one speed."""
    drawn, model.w2v_encoder.speeds.drawn = model.w2v_encoder.speeds.drawn, lambda _: speed
    try:
        return model(**sample_of()["net_input"])
    finally:
        model.w2v_encoder.speeds.drawn = drawn


def log_probs_of(output):
    """(T, B, V), and the valid counts (B,)."""
    return output["encoder_out"].log_softmax(dim=-1), (~output["padding_mask"]).sum(dim=1)


def ctc_of(output):
    log_probs, lengths = log_probs_of(output)
    targets, target_lengths = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([3, 2])
    return F.ctc_loss(log_probs, targets, lengths, target_lengths, reduction="sum")


def test_other_speeds_are_drawn_evenly_and_alike_for_an_update(four_layers):
    speeds = build_model(four_layers, **MANY).w2v_encoder.speeds
    assert speeds.whole == Speed(1.0, 1, 4)
    assert speeds.fastest == Speed(2.0, 2, 2)
    assert len(speeds.reduced) == 7 and speeds.whole not in speeds.reduced
    drawn = [speeds.drawn_reduced(update, 2, with_fastest=False) for update in range(700)]
    again = build_model(four_layers, **MANY).w2v_encoder.speeds
    assert drawn[:5] == [again.drawn_reduced(update, 2, False) for update in range(5)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = Counter(speed for pair in drawn for speed in pair)
    assert set(counts) == set(speeds.reduced)
    assert min(counts.values()) > 150
    sandwiches = [speeds.drawn_reduced(update, 1, with_fastest=True) for update in range(100)]
    assert {first for first, _ in sandwiches} == {speeds.fastest}
    assert {second for _, second in sandwiches} == set(speeds.reduced) - {speeds.fastest}


def test_the_loss_is_that_of_two_forwards(four_layers):
    model = build_model(four_layers, **POOLS).train()
    model.set_num_updates(3)
    whole, (reduced,) = Speed(1.0, 1, 4), model.w2v_encoder.speeds.drawn_reduced(3, 1, False)
    loss, sample_size, log = criterion_of(model, distillation_weight=0.3)(model, sample_of())
    teacher, student = at_speed(model, whole), at_speed(model, reduced)
    theirs, lengths = log_probs_of(teacher)
    ours, _ = log_probs_of(student)
    divergence = sum(  # frame by frame: upsampled, there are as many
        (theirs[t, i].exp() * (theirs[t, i] - ours[t, i])).sum()
        for i, length in enumerate(lengths.tolist())
        for t in range(length)
    )
    expected = ctc_of(teacher) + ctc_of(student) + 0.3 * divergence
    assert divergence > 0
    assert sample_size == 2
    torch.testing.assert_close(loss, expected)
    name = f"pool_{reduced.frame_pool}"
    assert log["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert log["loss_at_pool_1"] == pytest.approx(ctc_of(teacher).item(), rel=1e-5)
    assert log[f"loss_at_{name}"] == pytest.approx(ctc_of(student).item(), rel=1e-5)
    assert log[f"loss_teacher_at_{name}"] == pytest.approx(divergence.item(), rel=1e-4)
    assert log[f"teacher_frames_at_{name}"] == int(lengths.sum())


def test_frames_of_another_rate_learn_from_those_of_the_same_time(four_layers):
    model = build_model(four_layers, **(MANY | {"frame_pools": [], "depths": []})).train()
    loss, _, log = criterion_of(model)(model, sample_of())
    teacher, student = (at_speed(model, Speed(factor, 1, 4)) for factor in (1.0, 2.0))
    none = torch.zeros(1, 2, 1)
    frames = [HeadFrames(output, none, blank=0) for output in (student, teacher)]
    expected = posterior_distance(*frames).item()
    assert log["loss_teacher_at_factor_2"] == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(
        (ctc_of(teacher) + ctc_of(student)).item() + 0.1 * expected, rel=1e-5
    )


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    named = model.named_parameters()
    return {name: each.grad.clone() for name, each in named if each.grad is not None}


def test_gradients_reach_both_and_the_whole_model_learns_nothing_from_teaching(four_layers):
    model = build_model(four_layers, depths=[2, 4], frame_pools=[1, 2]).train()
    speeds = model.w2v_encoder.speeds
    fastest = Speed(1.0, 2, 2)
    criterion = criterion_of(model, sampled_speeds=0, sandwich=True, distillation_weight=5.0)
    found = gradients(model, criterion(model, sample_of())[0])
    assert speeds.fastest == fastest
    of_whole = gradients(model, ctc_of(at_speed(model, speeds.whole)))
    of_reduced = gradients(model, ctc_of(at_speed(model, fastest)))
    upper = [name for name in found if ".layers.2." in name or ".layers.3." in name]
    pooled = [name for name in found if ".upsamplings.2." in name]
    shared = [name for name in found if ".layers.0.fc" in name]
    assert upper and pooled and shared
    for name in upper:  # run by the whole model alone
        assert name not in of_reduced
        torch.testing.assert_close(found[name], of_whole[name])
    for name in pooled:  # by the reduced one: of CTC and of what it is taught
        assert name not in of_whole
        assert not torch.allclose(found[name], of_reduced[name], rtol=0.1)
    for name in shared:
        taught = found[name] - of_whole[name] - of_reduced[name]
        assert taught.abs().max() > 1e-4


@torch.no_grad()
def test_speeds_of_one_factor_share_the_front_end_and_its_masks(four_layers):
    model = build_model(four_layers, **MANY, apply_mask=True, mask_prob=0.5, mask_length=3).train()
    encoder = model.w2v_encoder
    heard, masked = [], []
    encoder.w2v_model.feature_extractor.register_forward_hook(lambda *_: heard.append(1))
    mask = encoder.w2v_model.apply_mask
    encoder.w2v_model.apply_mask = lambda *given, **options: (
        masked.append(1) or mask(*given, **options)
    )
    speeds = [Speed(1.0, 1, 4), Speed(1.0, 2, 2), Speed(2.0, 1, 2), Speed(1.0, 2, 4)]
    outputs = model(**batch_of(COUNTS), speeds=speeds)["at_speeds"]
    assert len(outputs) == 4
    assert len(heard) == len(masked) == 2
    # and the log's MACs are then those of the speed that the model is set to
    assert encoder.frame_reduction.factor == 1
    assert encoder.waveform_reduction.factor == 2.0
    assert encoder.w2v_model.encoder.layers.depth == 4


def test_checkpointed_activations_give_the_same_gradients(four_layers):
    found = []
    for checkpointed in (False, True):
        model = build_model(
            four_layers, **POOLS, layerdrop=0.0, checkpoint_activations=checkpointed
        ).train()
        found.append(gradients(model, criterion_of(model)(model, sample_of())[0]))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name, atol=1e-5, rtol=1e-4)


def test_one_forward_does_for_distributed_training(four_layers, tmp_path):
    model = build_model(four_layers, **MANY).train()
    criterion = criterion_of(model)
    expected = gradients(model, criterion(model, sample_of())[0])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        found = gradients(model, criterion(wrapped, sample_of())[0])
    finally:
        torch.distributed.destroy_process_group()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_in_half_precision_the_loss_is_finite_and_of_single(four_layers):
    model = build_model(four_layers, **POOLS).train()
    sample = sample_of()
    expected = criterion_of(model)(model, sample)[0].item()
    sample["net_input"]["source"] = sample["net_input"]["source"].bfloat16()
    loss, _, _ = criterion_of(model)(model.bfloat16(), sample)
    loss.backward()
    assert loss.dtype == torch.float
    assert loss.item() == pytest.approx(expected, rel=0.05)


def test_exits_have_a_loss_at_every_speed_that_reaches_them(four_layers):
    model = build_model(four_layers, depths=[2, 4], exit_layers="0,2").train()
    loss, _, log = criterion_of(model)(model, sample_of())
    speeds = model.w2v_encoder.speeds
    exits = criterion_of(model, CtcExitsCriterion)
    logs = []
    for speed in (speeds.whole, speeds.fastest):
        speeds.drawn = lambda _, speed=speed: speed
        logs.append(exits(model, sample_of())[2])
    assert log["loss_exit_0"] == pytest.approx(sum(each["loss_exit_0"] for each in logs))
    assert log["size_exit_0"] == 4
    assert log["loss_exit_2"] == pytest.approx(logs[0]["loss_exit_2"])
    assert log["size_exit_2"] == 2
    assert log["loss_at_depth_2"] == pytest.approx(logs[1]["loss"])
    taught = 0.1 * log["loss_teacher_at_depth_2"]
    assert loss.item() == pytest.approx(logs[0]["loss"] + logs[1]["loss"] + taught, rel=1e-5)


def test_hidden_states_are_a_target_too(four_layers):
    model = build_model(four_layers, **POOLS).train()
    criterion = criterion_of(model, distillation_target="hidden", sampled_speeds=2)
    loss, _, log = criterion(model, sample_of())
    for pool in (2, 3):
        frames = log[f"teacher_frames_at_pool_{pool}"]
        assert 0 < log[f"loss_teacher_at_pool_{pool}"] < 4 * frames
    loss.backward()
    assert model.w2v_encoder.frame_reduction.upsamplings["3"].linear.weight.grad.any()


def test_validation_is_of_the_speed_that_the_model_is_set_to(four_layers, corpus):
    model = build_model(four_layers, frame_pool=3, **POOLS)
    task = task_of(corpus)
    task.speeds = model.w2v_encoder.speeds
    cfg = {"sentence_avg": True, "post_process": "letter"}
    ours = CtcInPlaceDistillationCriterion(CtcInPlaceDistillationConfig(**cfg), task)
    plain = CtcExitsCriterion(CtcExitsConfig(**cfg), task)
    found, expected = (criterion(model, sample_of()) for criterion in (ours, plain))
    assert found[0].item() == expected[0].item()
    assert found[2] == expected[2]
    assert "loss_at_pool_3" not in found[2]


def test_it_learns_at_every_speed(four_layers):
    model = build_model(four_layers, **POOLS).train()
    criterion = criterion_of(model, sampled_speeds=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def losses():
        return [ctc_of(at_speed(model, Speed(1.0, pool, 4))).item() for pool in (1, 2, 3)]

    before = losses()
    for update in range(40):
        model.set_num_updates(update)
        optimizer.zero_grad()
        criterion(model, sample_of())[0].backward()
        optimizer.step()
    for first, last in zip(before, losses(), strict=True):
        assert last < first / 4


@pytest.mark.parametrize(
    ("speeds", "options", "words"),
    [
        ({}, {}, "needs a model of many speeds.*set model.downsample_factors, model.frame_pools"),
        ({"frame_pools": [1]}, {}, "needs a model of many speeds"),
        (POOLS, {"sampled_speeds": 0}, "sampled_speeds=0 is out of range; it must be 1 to 2, the"),
        (POOLS, {"sampled_speeds": 3}, "it must be 1 to 2, .* that are faster than the whole"),
        (
            POOLS,
            {"sampled_speeds": 2, "sandwich": True},
            "it must be 0 to 1, .* between the slowest and the fastest",
        ),
        (POOLS, {"distillation_weight": 0.0}, "distillation_weight=0.0 is out of range"),
        (POOLS, {"distillation_target": "mood"}, "distillation_target='mood'; valid values"),
    ],
)
def test_what_cannot_be_trained_so_is_refused_in_words(four_layers, speeds, options, words):
    model = build_model(four_layers, **speeds)
    with pytest.raises(ValueError, match=words):
        criterion_of(model, **options)


def test_a_model_of_one_speed_and_heads_alone_end_training_in_words(corpus, pretrained):
    refused = "needs a model of many speeds"
    with pytest.raises(ValueError, match=refused):
        build_with_task(corpus, pretrained, "ctc_in_place_distillation")
    heads = {"exit_layers": "0", "exit_heads_only": True}
    for name in ("ctc_in_place_distillation", "ctc_distillation"):
        with pytest.raises(ValueError, match=f"criterion={name} teaches the last head, which"):
            build_with_task(corpus, pretrained, name, **heads, **POOLS)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("teacher_path", "ctc_in_place_distillation, which ctc_distillation has: leave it out"),
        ("mood", "criterion._name=ctc_in_place_distillation: leave it out"),
    ],
)
def test_an_option_of_another_criterion_is_named_with_its_owner(corpus, pretrained, option, words):
    with pytest.raises(ValueError, match=f"criterion.{option} is no option of .*{words}"):
        build_with_task(corpus, pretrained, "ctc_in_place_distillation", {option: "x"}, **POOLS)


def build_with_task(corpus, pretrained, criterion: str, criterion_options=(), **options):
    """A model and then its criterion, as fairseq's training does."""
    task = task_of(corpus)
    given = {"w2v_path": str(pretrained), "normalize": True, "ddp_backend": "legacy_ddp"}
    task.build_model(OmegaConf.create({"_name": "speedup_ctc", "data": "", **given, **options}))
    cfg = {"_name": criterion, "sentence_avg": True, **dict(criterion_options)}
    return task.build_criterion(OmegaConf.create(cfg))


def test_a_training_with_matched_updates_first_resumes_to_the_same_weights(
    tmp_path, corpus, pretrained
):
    options = ["model.downsample=conv", "model.downsample_factors=[1,2,3]"]
    options += ["model.frontend_match_updates=1", "model.feature_grad_mult=1.0"]
    options += ["criterion._name=ctc_in_place_distillation", "+criterion.sandwich=true"]
    options += ["optimization.update_freq=[2]", "checkpoint.save_interval_updates=1"]
    options += ["model.exit_layers=upper"]
    whole = tmp_path / "whole"
    train(whole, corpus, pretrained, *options)
    rows = re.findall(r"\[train_inner\]\[INFO\] - ({.*})", log_of(whole))
    rows = [set(json.loads(row)) for row in rows]
    losses = {f"loss_at_factor_{k}" for k in (1, 2, 3)} | {"loss_exit_0"}
    taught = {f"loss_teacher_at_factor_{k}" for k in (2, 3)}
    assert "frontend_loss" in rows[0] and not rows[0] & losses
    for row in rows[1:]:  # one between the whole and the fastest: the same in every update
        assert losses | taught <= row
    resumed = tmp_path / "resumed"
    (resumed / "checkpoints").mkdir(parents=True)
    (third,) = whole.glob("checkpoints/checkpoint_?_3.pt")
    shutil.copy(third, last_checkpoint(resumed))
    train(resumed, corpus, pretrained, *options)
    assert "Loaded checkpoint" in log_of(resumed)
    ours, again = (torch.load(last_checkpoint(each))["model"] for each in (whole, resumed))
    assert all(torch.equal(ours[name], again[name]) for name in ours)
