"""Early exit: per utterance, real, and the same alone as in a batch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import (
    Labels,
    batch_of,
    build_model,
    check_alone,
    finetuned_state,
    let_longer_leave,
    write_pretrained,
)
from omegaconf import OmegaConf

from fairseq_speedup.criterions import CtcExitsConfig, CtcExitsCriterion
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.transformer.early_exit import (
    mean_entropy,
    mean_similarity,
    parse_exit_layers,
)
from fairseq_speedup.transformer.layers import check_layers

COUNTS = [9000, 4000, 7000, 5500, 8000]


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("six")
    paths = {}
    for pre_norm in (False, True):
        path = folder / f"{pre_norm}.pt"
        write_pretrained(path, encoder_layers=6, layer_norm_first=pre_norm)
        state = torch.load(path)
        for name, weight in state["model"].items():
            if "fc2.weight" in name:  # layers at random change almost nothing: let them
                weight *= 30
        torch.save(state, path)
        paths[pre_norm] = path
    return paths


def build_exits(path, exit_layers="1,2,4", **options):
    return build_model(path, exit_layers=exit_layers, **options)


@torch.no_grad()
def run(model, net_input):
    output = model(**net_input)
    return model.get_logits(output), output


def layers_run_of(output) -> torch.Tensor:
    """(B,)"""
    return (output["layer_frames"] > 0).sum(dim=1)


def alone(net_input, i):
    count = COUNTS[i]
    return {"source": net_input["source"][i : i + 1, :count], "padding_mask": None}


def spread_threshold(model, net_input):
    """A threshold at which the utterances of a batch leave after different layers: one that parts
    what the criterion measures at the first exit."""
    exits = model.w2v_encoder.exit
    exits.observed = True
    _, output = run(model, net_input)
    exits.observed = False
    at_first_exit = sorted(output["exit_measured"][exits.exits[0]].tolist())
    return sum(at_first_exit[1:3]) / 2


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("criterion", ["entropy", "similarity"])
@pytest.mark.parametrize("logit_upsample", [1, 2])
def test_utterances_that_leave_apart_decode_as_alone(
    six_layers, pre_norm, criterion, logit_upsample
):
    model = build_exits(
        six_layers[pre_norm], exit_criterion=criterion, logit_upsample=logit_upsample
    )
    net_input = batch_of(COUNTS)
    model.w2v_encoder.exit.threshold = spread_threshold(model, net_input)
    logits, output = run(model, net_input)
    layers_run = layers_run_of(output).tolist()
    assert len(set(layers_run)) > 1  # else the test shows nothing
    for i in range(len(COUNTS)):
        expected, alone_output = run(model, alone(net_input, i))
        assert layers_run_of(alone_output).tolist() == [layers_run[i]]
        frames = expected.size(0)
        torch.testing.assert_close(logits[:frames, i], expected[:, 0], atol=1e-5, rtol=1e-4)


def test_what_criteria_measure_leaves_padding_out():
    probabilities = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    logits = probabilities.clamp(min=1e-9).log()[:, None, :].expand(3, 2, 2)
    lengths = torch.tensor([3, 2])
    found = mean_entropy(logits=logits, logit_lengths=lengths)
    assert found[1].item() == pytest.approx(math.log(2) / 2, abs=1e-5)
    last = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert found[0].item() == pytest.approx((math.log(2) + last) / 3, abs=1e-5)
    hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])[:, None, :].expand(3, 2, 2)
    before = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 1.0]])[:, None, :].expand(3, 2, 2)
    found = mean_similarity(hidden=hidden, before=before, lengths=lengths)
    assert found.tolist() == pytest.approx([2 / 3, 1 / 2], abs=1e-5)


def test_an_exit_equals_the_model_cut_there_with_that_head(six_layers):
    path = six_layers[True]
    model = build_exits(path, exit_criterion="layer", exit_threshold=2)
    net_input = batch_of(COUNTS)
    logits, output = run(model, net_input)
    assert layers_run_of(output).tolist() == [3] * len(COUNTS)
    cut = build_model(path, keep_layers="3")
    cut.w2v_encoder.proj = model.w2v_encoder.exit_heads["2"]
    torch.testing.assert_close(logits, run(cut, net_input)[0])


def test_layers_really_run_are_counted_by_the_layers_themselves(six_layers):
    model = build_exits(six_layers[False], exit_criterion="entropy")
    net_input = batch_of(COUNTS)
    model.w2v_encoder.exit.threshold = spread_threshold(model, net_input)
    seen = []  # (layer, utterances, frames) of each call of a layer's feed-forward network
    for index, layer in enumerate(model.w2v_encoder.w2v_model.encoder.layers):
        layer.fc1.register_forward_pre_hook(
            lambda _, args, index=index: seen.append((index, args[0].size(1), args[0].size(0)))
        )
    _, output = run(model, net_input)
    layers_run = layers_run_of(output)
    frames = model.w2v_encoder.frame_lengths(torch.tensor(COUNTS))
    for index, num_utterances, num_frames in seen:
        assert num_utterances == int((layers_run > index).sum())
        longest = int(frames[layers_run > index].max())
        assert num_frames in (longest, longest + 1)  # fairseq rounds up to even
    assert {index for index, _, _ in seen} == set(range(int(layers_run.max())))


@pytest.mark.parametrize("more", [{}, {"frame_pool": 2}, {"logit_upsample": 2}], ids=str)
def test_the_last_head_runs_over_those_who_stay_and_is_counted_so(six_layers, more):
    model = build_exits(six_layers[False], exit_layers="1", exit_criterion="entropy", **more)
    encoder, net_input = model.w2v_encoder, batch_of(COUNTS)
    let_longer_leave(model, 7000)
    given = []  # shapes of what the exit's head and the last are given
    for head in (encoder.exit_heads["1"], encoder.proj):
        head.register_forward_pre_hook(lambda _, args: given.append(tuple(args[0].shape)))
    logits, output = run(model, net_input)
    all_frames = encoder.frame_lengths(np.array(COUNTS))
    assert given == [(all_frames[0], 5, 16), (all_frames[2], 3, 16)]
    asked = [1, 2, 2, 2, 1]
    head = 16 * len(Labels().target_dictionary) * encoder.logit_upsample
    counted = MacCounter(model).count(COUNTS, output["layer_frames"].numpy())
    assert counted.head.tolist() == (all_frames * asked * head).tolist()
    check_alone(model, net_input, logits, output["layer_frames"])


def test_when_everyone_leaves_the_rest_is_not_run(six_layers):
    model = build_exits(six_layers[False], exit_criterion="entropy", exit_threshold=1e9)
    called = []
    for index, layer in enumerate(model.w2v_encoder.w2v_model.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    for net_input in (batch_of(COUNTS), batch_of([6000])):
        called.clear()
        logits, output = run(model, net_input)
        assert called == [0, 1]  # the first exit is after layer 1
        assert set(layers_run_of(output).tolist()) == {2}
        assert logits.size(0) == model.w2v_encoder.output_lengths(net_input["source"].size(1))


def test_when_nobody_leaves_the_last_head_decides(six_layers):
    model = build_exits(six_layers[False], exit_criterion="entropy", exit_threshold=-1.0)
    plain = build_model(six_layers[False])
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "exit_heads" not in k})
    net_input = batch_of(COUNTS)
    logits, output = run(model, net_input)
    torch.testing.assert_close(logits, run(plain, net_input)[0])
    assert layers_run_of(output).tolist() == [6] * len(COUNTS)


def test_macs_count_the_layers_and_heads_that_were_run(six_layers):
    model = build_exits(six_layers[False], exit_criterion="entropy")
    counter = MacCounter(model)
    frames = model.w2v_encoder.frame_lengths(8000)

    def count(num_layers):
        return counter.count([8000], [[frames] * num_layers + [0] * (6 - num_layers)])

    whole, early = count(6), count(3)
    per_layer = int(count(1).transformer[0] - count(0).transformer[0])
    assert int(whole.transformer[0] - early.transformer[0]) == 3 * per_layer
    head = 16 * len(Labels().target_dictionary) * frames
    assert int(early.head[0]) == 2 * head  # the exits after layers 1 and 2
    assert int(whole.head[0]) == 4 * head  # those, the one after layer 4, and the last


@pytest.mark.parametrize(
    ("threshold", "more"),  # one beyond the last exit among them
    [
        (2, {}),
        (9, {}),
        (2, {"frame_pool": 2}),
        (2, {"merge_ratio": 0.2}),
        (9, {"merge_ratio": 0.2}),
    ],
    ids=str,
)
def test_macs_of_exits_by_layer_are_foretold_without_audio(six_layers, threshold, more):
    model = build_exits(six_layers[False], exit_criterion="layer", exit_threshold=threshold, **more)
    _, output = run(model, batch_of(COUNTS))
    counter, layer_frames = MacCounter(model), output["layer_frames"].numpy()
    assert counter.count(COUNTS).sum() == counter.count(COUNTS, layer_frames).sum()


def test_similarity_is_of_what_a_layer_is_given_and_what_it_gives(six_layers):
    model = build_exits(six_layers[False], exit_criterion="similarity")
    encoder, seen = model.w2v_encoder, {}
    for index, layer in enumerate(encoder.w2v_model.encoder.layers):
        layer.register_forward_hook(
            lambda _, args, output, index=index: seen.update({index: (args[0], output[0])})
        )
    encoder.exit.observed = True
    _, output = run(model, batch_of(COUNTS))
    frames = encoder.frame_lengths(torch.tensor(COUNTS)).tolist()
    for index, found in output["exit_measured"].items():
        before, after = seen[index]
        expected = [
            F.cosine_similarity(after[:count, i], before[:count, i], dim=1).mean().item()
            for i, count in enumerate(frames)
        ]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("criterion", ["entropy", "similarity"])
def test_training_measures_nothing_and_calibration_does(six_layers, criterion):
    outputs, called = {}, []
    for name in ("none", criterion):
        model = build_exits(
            six_layers[False], exit_criterion=name, final_dropout=0.3, dropout=0.1
        ).train()
        for index, head in model.w2v_encoder.exit_heads.items():
            head.register_forward_hook(lambda *_, index=index: called.append(index))
        called.clear()
        torch.manual_seed(0)
        np.random.seed(0)
        _, outputs[name] = run(model, batch_of(COUNTS))
        assert called == ["1", "2", "4"]
        assert outputs[name]["exit_measured"] == {}
    assert torch.equal(outputs[criterion]["encoder_out"], outputs["none"]["encoder_out"])
    model.eval().w2v_encoder.exit.observed = True
    _, observed = run(model, batch_of(COUNTS))
    assert [*observed["exit_measured"]] == [1, 2, 4]


def test_training_keeps_every_exits_logits_and_loss(six_layers):
    model = build_exits(six_layers[False], exit_layers="upper").train()
    task = Labels()
    task.blank_symbol = "<s>"
    cfg = OmegaConf.structured(CtcExitsConfig(sentence_avg=True, exit_loss_weight=0.5))
    criterion = CtcExitsCriterion(cfg, task)
    sample = {
        "id": torch.arange(2),
        "net_input": batch_of([9000, 7000]),
        "target": torch.tensor([[5, 6, 7], [8, 9, 1]]),
        "target_lengths": torch.tensor([3, 2]),
        "ntokens": 5,
    }
    loss, _, log = criterion(model, sample)
    exits = [name for name in log if name.startswith("loss_exit_")]
    assert exits == ["loss_exit_2", "loss_exit_3", "loss_exit_4"]
    model.w2v_encoder.exit.exits = []
    last, _, _ = criterion(model, sample)
    expected = last.item() + 0.5 * sum(log[name] for name in exits)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in model.w2v_encoder.exit_heads.parameters())


def test_every_exit_is_logged_also_where_its_layer_was_dropped(six_layers):
    model = build_exits(six_layers[False], exit_layers="upper", layerdrop=1.0).train()
    task = Labels()
    task.blank_symbol = "<s>"
    criterion = CtcExitsCriterion(OmegaConf.structured(CtcExitsConfig(sentence_avg=True)), task)
    sample = {
        "id": torch.arange(1),
        "net_input": batch_of([9000]),
        "target": torch.tensor([[5, 6, 7]]),
        "target_lengths": torch.tensor([3]),
        "ntokens": 3,
    }
    _, _, log = criterion(model, sample)
    for layer in (2, 3, 4):  # workers sum their logs: each has the same keys
        assert (log[f"loss_exit_{layer}"], log[f"size_exit_{layer}"]) == (0, 0)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_heads_alone_are_trained_while_the_rest_is_frozen(six_layers, pre_norm):
    """The norm and the upsampling that lie between layers and heads are frozen too."""
    model = build_exits(six_layers[pre_norm], freeze_finetune_updates=10, frame_pool=2).train()

    def trained():
        model.zero_grad()
        output = model(**batch_of([6000]))
        sum(logits.square().sum() for logits in output["exit_logits"].values()).backward()
        return {name for name, p in model.named_parameters() if p.grad is not None}

    heads = {f"w2v_encoder.exit_heads.{i}.{kind}" for i in (1, 2, 4) for kind in ("weight", "bias")}
    assert trained() == heads
    model.set_num_updates(10)
    assert trained() > heads


def test_every_exit_learns_in_every_update_where_heads_alone_are_trained(six_layers):
    model = build_exits(six_layers[False], exit_heads_only=True, layerdrop=0.5).train()
    for update in range(5):
        model.set_num_updates(update)
        model.zero_grad()
        output = model(**batch_of([6000]))
        assert layers_run_of(output).tolist() == [6]
        sum(logits.square().sum() for logits in output["exit_logits"].values()).backward()
        assert all(p.grad.any() for p in model.w2v_encoder.exit_heads.parameters())


def test_heads_alone_can_be_trained(six_layers):
    model = build_exits(six_layers[False], exit_heads_only=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"w2v_encoder.exit_heads.{i}.{kind}" for i in (1, 2, 4) for kind in ("weight", "bias")
    }


def test_a_checkpoint_without_exits_starts_them_as_its_last_head(six_layers, caplog):
    plain = build_model(six_layers[False], seed=3)
    model = build_exits(six_layers[False])
    model.load_state_dict(plain.state_dict())
    for head in model.w2v_encoder.exit_heads.values():
        assert torch.equal(head.weight, plain.w2v_encoder.proj.weight)
    assert "no head for exit 4" in caplog.text
    plain.load_state_dict(model.state_dict())  # and back: heads that are not wanted are left out


def test_exits_of_a_model_that_starts_from_a_fine_tuned_one_begin_as_its_head(six_layers, tmp_path):
    plain = build_model(six_layers[False], seed=3)
    torch.save(finetuned_state(plain), tmp_path / "plain.pt")
    model = build_exits(tmp_path / "plain.pt")
    for head in [model.w2v_encoder.proj, *model.w2v_encoder.exit_heads.values()]:
        assert torch.equal(head.weight, plain.w2v_encoder.proj.weight)


def test_layers_of_another_kind_are_refused(pretrained):
    encoder = build_model(pretrained).w2v_encoder.w2v_model.encoder
    encoder.layers[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match="this model has Identity: set exit_layers=none"):
        check_layers(encoder.layers, "exit_layers=none")


@pytest.mark.parametrize(
    ("exit_layers", "kept", "exits"),
    [
        ("none", range(6), []),
        ("upper", range(6), [2, 3, 4]),
        ("upper", range(5), [1, 2, 3]),
        ("upper", [0, 3, 5, 7], [3, 5]),
        ("0,5", [0, 3, 5, 7], [0, 5]),
    ],
)
def test_exits_that_are_named(exit_layers, kept, exits):
    assert parse_exit_layers(exit_layers, list(kept)) == exits


@pytest.mark.parametrize("exit_layers", ["upper", "2,3,4"])
def test_a_depth_of_many_has_those_exits_of_the_deepest_that_it_keeps(six_layers, exit_layers):
    depths = [1, 4, 6]
    for kept, exits in [(6, [2, 3, 4]), (4, [2]), (1, [])]:
        assert parse_exit_layers(exit_layers, list(range(kept)), depths) == exits
        encoder = build_model(
            six_layers[True], depths=depths, keep_layers=str(kept), exit_layers=exit_layers
        ).w2v_encoder
        assert encoder.exit_layers == exits
    assert parse_exit_layers("upper", [0, 2, 4, 5], [2, 4]) == [2, 4]  # which first layers have not


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exit_layers": "5"}, "exit_layers=5: layer 5 is the last and always has a head"),
        ({"exit_layers": "6"}, "the model has no layer 6"),
        ({"exit_layers": "1,4", "keep_layers": "0,1,2,3,5"}, "no layer 4; with its keep_layers"),
        ({"exit_layers": "1,1"}, "repeats a layer"),
        ({"exit_layers": "all"}, "neither 'none', 'upper' nor a list"),
        ({"exit_layers": "upper", "keep_layers": "1"}, "upper needs 2 layers or more"),
        (
            {"exit_layers": "none", "exit_criterion": "entropy"},
            "exit_criterion=entropy needs exits",
        ),
        ({"exit_layers": "none", "exit_heads_only": True}, "exit_heads_only needs exits"),
        ({"exit_criterion": "mood"}, "unknown exit_criterion='mood'.*entropy, layer, none, simil"),
        ({"exit_threshold": float("nan")}, "exit_threshold is NaN"),
    ],
)
def test_exits_that_mean_nothing_are_refused_in_words(six_layers, options, words):
    with pytest.raises(ValueError, match=words):
        build_exits(six_layers[False], **({"exit_layers": "1,2,4"} | options))
