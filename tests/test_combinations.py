"""Every reduction alone and with every other: builds, trains, is saved, reloaded and decodes."""

import itertools
import re

import pytest
import torch
from helpers.models import Labels, batch_of, build_model, write_pretrained
from helpers.reductions import REDUCTIONS, name_of
from omegaconf import OmegaConf

from fairseq_speedup.criterions import (
    CtcExitsConfig,
    CtcExitsCriterion,
    CtcInPlaceDistillationConfig,
    CtcInPlaceDistillationCriterion,
)
from fairseq_speedup.decoding.generator import CtcGenerator
from fairseq_speedup.decoding.greedy import GreedyDecoder
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.compute import ComputeMeter
from fairseq_speedup.profiling.fvcore_count import fvcore_macs

PAIRS = [
    {**REDUCTIONS[left], **REDUCTIONS[right]}
    for left, right in itertools.combinations(REDUCTIONS, 2)
    if not REDUCTIONS[left].keys() & REDUCTIONS[right].keys()
]
CASES = [{}, *REDUCTIONS.values(), *PAIRS]
MANY_SPEEDS = [
    options for options in CASES if {"downsample_factors", "frame_pools", "depths"} & options.keys()
]
COUNTS = [9000, 6000]
SAMPLE = {
    "id": torch.arange(2),
    "target": torch.tensor([[5, 6, 7], [8, 9, 1]]),
    "target_lengths": torch.tensor([3, 2]),
    "ntokens": 5,
}
FROZEN = ("w2v_encoder.w2v_model.feature_extractor.", "w2v_encoder.w2v_model.mask_emb")


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("four") / "four.pt", encoder_layers=4)


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_it_trains_is_saved_reloaded_and_decodes(four_layers, tmp_path, options):
    model = build_model(four_layers, **options).train()
    task = Labels()
    task.blank_symbol = "<s>"
    criterion = CtcExitsCriterion(OmegaConf.structured(CtcExitsConfig(sentence_avg=True)), task)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen = {name for name in before if name.startswith(FROZEN)}
    sample = SAMPLE | {"net_input": batch_of(COUNTS)}
    for num_updates in range(10 if model.w2v_encoder.speeds.many else 2):
        model.set_num_updates(num_updates)
        optimizer.zero_grad()
        criterion(model, sample)[0].backward()
        optimizer.step()
        unchanged = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
        if num_updates and unchanged == frozen:  # of many speeds, sooner than by the last mostly
            break
    assert unchanged == frozen

    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = build_model(four_layers, seed=99, **options)
    again.load_state_dict(torch.load(tmp_path / "model.pt"))
    decoder = GreedyDecoder(task.target_dictionary.bos())
    found = []
    for each in (model.eval(), again.eval()):
        meter = ComputeMeter([each], 16000)
        generator = CtcGenerator(decoder, task.target_dictionary, 0, meter)
        (first,), (second,) = generator.generate([each], {"net_input": batch_of(COUNTS)})
        found.append([first["tokens"].tolist(), second["tokens"].tolist(), first["score"]])
    assert found[0] == found[1]
    frames_decide = {"merge_threshold", "drop_frames"} & options.keys()
    if frames_decide or options not in PAIRS:
        report = meter.report()
        assert report["macs_per_second"] > 0
        assert report["macs_check"]["closed_form"] == report["macs_check"]["fvcore"]
    if not frames_decide:  # each stage
        assert MacCounter(again).count([8000]).sum() == fvcore_macs(again, 8000)


@pytest.mark.parametrize("options", MANY_SPEEDS, ids=name_of)
def test_one_forward_at_many_speeds_is_that_of_each_and_trains_all(four_layers, options):
    model = build_model(four_layers, **options)
    encoder = model.w2v_encoder
    speeds = [encoder.speeds.whole, *encoder.speeds.reduced]
    with torch.no_grad():
        found = model(**batch_of(COUNTS), speeds=speeds)["at_speeds"]
        default = encoder.speeds.default
        for speed, output in zip(speeds, found, strict=True):
            encoder.speeds.default = speed
            expected = model(**batch_of(COUNTS))
            assert torch.equal(output["encoder_out"], expected["encoder_out"])
            assert torch.equal(output["padding_mask"], expected["padding_mask"])
        encoder.speeds.default = default
    task = Labels()
    task.blank_symbol, task.speeds = "<s>", encoder.speeds
    cfg = CtcInPlaceDistillationConfig(
        sentence_avg=True, sampled_speeds=len(encoder.speeds.reduced), zero_infinity=True
    )
    criterion = CtcInPlaceDistillationCriterion(OmegaConf.structured(cfg), task)
    loss, _, _ = criterion(model.train(), SAMPLE | {"net_input": batch_of(COUNTS)})
    loss.backward()
    assert torch.isfinite(loss)
    trained = {name for name, each in model.named_parameters() if each.grad is not None}
    wanted = {name for name, each in model.named_parameters() if each.requires_grad}
    assert {name for name in wanted - trained if not name.startswith(FROZEN)} == set()
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())


ILLEGAL = [
    ({"downsample": "none", "downsample_factor": 2.0}, ["downsample", "downsample_factor=2.0"]),
    ({"downsample": "conv", "downsample_factor": 1.0}, ["downsample=conv", "downsample_factor"]),
    (
        {"downsample": "conv", "downsample_factor": 4.0, "downsample_factors": [1.0, 2.0]},
        ["downsample_factor=4.0", "downsample_factors="],
    ),
    ({"frontend": "cnn", "frontend_frame_ms": 40}, ["frontend_frame_ms=40", "frontend=fbank"]),
    (
        {"frontend": "cnn", "frontend_match_updates": 9},
        ["frontend_match_updates=9", "frontend=fbank", "downsample=signal, conv or average"],
    ),
    (
        {
            "downsample": "signal",
            "downsample_factor": 2.0,
            "frontend_match_updates": 9,
            "exit_layers": "1",
            "exit_heads_only": True,
        },
        ["frontend_match_updates=9", "exit_heads_only=true"],
    ),
    (
        {
            "downsample": "signal",
            "downsample_factor": 2.0,
            "frontend_match_updates": 9,
            "no_pretrained_weights": True,
        },
        ["frontend_match_updates=9", "no_pretrained_weights"],
    ),
    (
        {
            "frontend": "fbank",
            "frontend_match_updates": 9,
            "exit_layers": "1",
            "exit_heads_only": True,
        },
        ["frontend_match_updates=9", "exit_heads_only=true"],
    ),
    ({"frame_pool": 1, "frame_pool_method": "conv"}, ["frame_pool=1", "frame_pool_method=conv"]),
    ({"frame_pool": 3, "frame_pools": [1, 2]}, ["frame_pool=3", "frame_pools="]),
    ({"keep_layers": "3", "depths": [2, 4]}, ["depths=", "keep_layers"]),
    ({"keep_layers": "0,2", "exit_layers": "1"}, ["exit_layers=1", "keep_layers"]),
    (
        {"keep_layers": "0,2", "merge_ratio": 0.1, "merge_layers": "1"},
        ["merge_layers=1", "keep_layers"],
    ),
    ({"keep_layers": "1", "merge_ratio": 0.1}, ["merge_ratio", "keep_layers"]),
    ({"keep_layers": "1", "exit_layers": "upper"}, ["exit_layers=upper", "the model keeps 1"]),
    ({"merge_ratio": 0.0, "merge_threshold": 0.9}, ["merge_threshold=0.9", "merge_ratio"]),
    ({"merge_ratio": 0.0, "merge_layers": "1"}, ["merge_layers=1", "merge_ratio"]),
    ({"exit_layers": "none", "exit_criterion": "entropy"}, ["exit_criterion=", "exit_layers"]),
    ({"exit_layers": "none", "exit_heads_only": True}, ["exit_heads_only", "exit_layers"]),
    ({"head": "linear", "head_dim": 12}, ["head_dim=12", "head=linear"]),
]


@pytest.mark.parametrize(("options", "words"), ILLEGAL, ids=lambda value: str(value)[:60])
def test_options_that_mean_nothing_together_are_refused_and_named(four_layers, options, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as refused:
        build_model(four_layers, **options)
    for word in words[1:]:
        assert word in str(refused.value)
