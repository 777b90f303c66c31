"""Frame dropping: which frames go, and that who is left decodes the same alone as in a batch."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from helpers.commands import REPO
from helpers.models import batch_of, build_model, check_alone, let_longer_leave, write_pretrained

from fairseq_speedup.inference import to_inference_form
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.fvcore_count import check_macs
from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.frame_dropping import (
    FRAME_DROPS,
    FrameDrop,
    FrameDropping,
    FrameDroppingConfig,
    blank_frames,
)

COUNTS = [9000, 4000, 7000, 5500, 8000]
BLANK = {"drop_frames": "blank", "exit_layers": "1,3", "drop_threshold": 0.05}


@pytest.fixture(scope="module", params=[False, True], ids=["post_norm", "pre_norm"])
def six_layers(tmp_path_factory, request):
    path = tmp_path_factory.mktemp("six") / "six.pt"
    return write_pretrained(path, encoder_layers=6, layer_norm_first=request.param)


@pytest.fixture
def steady():
    path = REPO / "examples/extending/steady_frames/__init__.py"
    spec = importlib.util.spec_from_file_location("steady_frames", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield {"drop_frames": "steady", "drop_layers": "0,2", "drop_threshold": 0.2}
    del FRAME_DROPS["steady"]


@pytest.fixture
def changed_most(monkeypatch):
    """Frames that a layer changes much go."""

    def choose(*, hidden, given, threshold, **unused):
        return F.cosine_similarity(hidden, given, dim=-1) < threshold

    monkeypatch.setitem(FRAME_DROPS, "changed", FrameDrop(choose))


def build(path, **options):
    """Exits that call about half of the frames blank."""
    model = build_model(path, **options)
    for head in getattr(model.w2v_encoder, "exit_heads", {}).values():
        if hasattr(head, "bias"):
            head.weight.data.normal_(0, 0.3)
            head.bias.data[0] = 2.0
    return model


@torch.no_grad()
def run(model, net_input):
    output = model(**net_input)
    return model.get_logits(output), output


def leave_apart(model, net_input) -> None:
    """Chooses a threshold at which some utterances leave at the first exit."""
    exits = model.w2v_encoder.exit
    exits.observed = True
    measured = sorted(run(model, net_input)[1]["exit_measured"][1].tolist())
    exits.observed, exits.threshold = False, sum(measured[1:3]) / 2


def begins(hidden, lengths):
    lengths = torch.tensor(lengths)
    return FrameBatch(hidden, lengths, num_layers=3, frame_lengths=lengths, num_frames=len(hidden))


def test_a_run_of_blanks_keeps_its_ends():
    likely = torch.tensor([0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.2, 0.9, 0.1, 0.9, 0.9])
    log_probs = torch.stack([likely, 1 - likely], dim=1).log()[:, None]
    found = blank_frames(log_probs=log_probs, blank=0, threshold=0.5)[:, 0]
    assert found.tolist() == [i in (0, 4, 10) for i in range(11)]


def test_what_is_dropped_comes_back_as_a_copy_of_what_stayed():
    hidden = torch.arange(10.0).reshape(5, 2, 1)  # (T, 2, 1): 0 2 4 6 8 and 1 3 5 7 9
    batch = begins(hidden, [5, 3])
    drops = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 1, 0, 0]]).bool().T
    batch.drop(drops)
    assert batch.lengths.tolist() == [2, 2]
    assert batch.hidden[:, :, 0].T.tolist() == [[0, 6], [1, 3]]
    assert batch.unmerged()[:3, :, 0].T.tolist() == [[0, 0, 0], [1, 3, 3]]
    assert batch.unmerged()[3:, 0, 0].tolist() == [6, 6]
    flags = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]).bool().T
    assert batch.any_of(flags).T.tolist() == [[True, False], [False, True]]


def dropping_of(labels: list[int], logits_per_frame: int = 1) -> FrameDropping:
    """After layer 0, whose exit is sure of these labels (T * logits_per_frame,)."""
    logits = 9 * F.one_hot(torch.tensor(labels), 3).float()[:, None]

    def head(index, frames, batch):
        return logits, torch.tensor([len(labels)])

    cfg = FrameDroppingConfig(drop_frames="blank")
    return FrameDropping([0], [0, 1], head, lambda: logits_per_frame, cfg)


def test_a_frame_stays_if_any_of_its_logits_is_a_label():
    batch = begins(torch.arange(6.0)[:, None, None], [6])
    #                         frame 0     1     2     3     4     5
    dropping_of(logits_per_frame=2, labels=[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]).after(0, batch)
    assert batch.hidden.flatten().tolist() == [0, 2, 3, 4]  # the first, and those beside the label


def test_frames_that_merged_stay_if_one_of_them_does():
    batch = begins(torch.arange(8.0)[:, None, None], [8])
    merges = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0]).bool()[:, None]  # 1 and 2, 4 and 5
    batch.merge(merges)
    dropping_of(labels=[0, 0, 0, 0, 0, 0, 1, 0]).after(0, batch)
    # 0 is the first, and 5 is beside the label; of 1 and 2 nothing stays
    assert batch.hidden.flatten().tolist() == [0, 4.5, 6, 7]
    assert batch.index_now.tolist() == [[0, 0, 0, 0, 1, 1, 2, 3]]


def test_who_stays_beside_those_who_leave_is_dropped_by_what_its_layer_was_given(
    six_layers, changed_most
):
    options = {"exit_layers": "1", "drop_frames": "changed", "drop_layers": "1"}
    model = build(six_layers, **options, exit_criterion="entropy")
    net_input, seen = batch_of(COUNTS), []
    layer = model.w2v_encoder.w2v_model.encoder.layers[1]
    hook = layer.register_forward_hook(lambda _, args, output: seen.append((output[0], args[0])))
    let_longer_leave(model, 7000)
    run(model, net_input)
    hook.remove()
    similar = F.cosine_similarity(*seen[0], dim=-1).flatten().sort().values
    middle = len(similar) // 2
    dropping = next(stage for stage in model.w2v_encoder.stages if hasattr(stage, "drop"))
    dropping.threshold = similar[middle - 1 : middle + 1].mean().item()  # and not one of them
    logits, output = run(model, net_input)
    before, after = output["layer_frames"][:, 1:3].T
    assert (after > 0).tolist() == [False, True, True, True, False]
    assert (after < before)[1:4].any()  # else the test shows nothing
    check_alone(model, net_input, logits, output["layer_frames"])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"frame_pool": 2},
        {"logit_upsample": 2, "frame_pool": 3},
        {"merge_ratio": 0.2},
        {"exit_criterion": "layer", "exit_threshold": 3},
        {"exit_criterion": "entropy"},
    ],
    ids=str,
)
def test_an_utterance_gives_the_same_alone_as_in_a_batch(six_layers, more):
    model = build(six_layers, **(BLANK | more))
    net_input = batch_of(COUNTS)
    if "exit_criterion" in more and "exit_threshold" not in more:
        leave_apart(model, net_input)
    logits, output = run(model, net_input)
    layer_frames = output["layer_frames"]
    given = layer_frames[layer_frames[:, 2] > 0]
    assert (given[:, 2] < given[:, 0]).any()  # else the test shows nothing
    check_alone(model, net_input, logits, layer_frames)


def test_a_threshold_that_no_frame_is_above_changes_nothing(six_layers):
    plain = build(six_layers, exit_layers="1,3")
    model = build(six_layers, **(BLANK | {"drop_threshold": 0.999}))
    net_input = batch_of(COUNTS)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(run(model, net_input)[0], run(plain, net_input)[0])


def test_it_is_trained_through(six_layers):
    model = build(six_layers, **BLANK).train()
    output = model(**batch_of([9000, 7000]))
    assert output["layer_frames"][:, 5].max() < output["layer_frames"][:, 0].min()
    output["encoder_out"].square().sum().backward()
    weight = model.w2v_encoder.w2v_model.post_extract_proj.weight
    assert weight.grad.abs().sum() > 0


def test_what_is_dropped_in_training_is_no_matter_of_dropout(six_layers, monkeypatch):
    given, dropped = [], []

    def choose(*, log_probs, **others):
        given.append(log_probs)
        dropped.append(blank_frames(log_probs=log_probs, **others))
        return dropped[-1]

    monkeypatch.setitem(FRAME_DROPS, "blank", FrameDrop(choose, needs_exit=True))
    model = build(six_layers, **BLANK, final_dropout=0.5, apply_mask=False, dropout_input=0.0)
    net_input = batch_of(COUNTS)
    for training in (False, True, True):
        model.train(training)(**net_input)
    assert dropped[0].any()
    for after, other in zip(dropped[2:], dropped[:2] * 2, strict=True):
        assert torch.equal(after, other)
    assert not any(log_probs.requires_grad for log_probs in given)


def test_macs_are_those_of_the_frames_that_were_left_and_of_the_heads_that_were_asked(six_layers):
    model = build(six_layers, **BLANK)
    check = check_macs([model], 9000)
    assert check["closed_form"] == check["fvcore"]
    _, output = run(model, batch_of([9000]))
    counter = MacCounter(model)
    dropped = counter.count([9000], output["layer_frames"].numpy()).sum()
    whole = counter.count([9000]).sum()
    assert dropped.transformer < whole.transformer
    without = MacCounter(build(six_layers, exit_layers="none")).count([9000]).sum()
    assert dropped.head == whole.head == 3 * without.head  # two exits and the last


def test_a_part_of_ones_own_goes_all_the_way(steady, six_layers, tmp_path):
    model = build(six_layers, **steady)
    net_input = batch_of(COUNTS)
    logits, output = run(model, net_input)
    assert (output["layer_frames"][:, 3] < output["layer_frames"][:, 0]).all()
    check_alone(model, net_input, logits)
    check = check_macs([model], 9000)
    assert check["closed_form"] == check["fvcore"]
    form = build(six_layers, **steady)
    to_inference_form(form, "fp32")
    found, form_output = run(form, net_input)
    assert form_output["layer_frames"].tolist() == output["layer_frames"].tolist()
    for i, frames in enumerate(model.w2v_encoder.frame_lengths(torch.tensor(COUNTS))):
        torch.testing.assert_close(found[:frames, i], logits[:frames, i], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop_frames": "blank"}, "drops nothing: the model has no exits. Set exit_layers"),
        ({"drop_frames": "dull"}, "unknown drop_frames='dull'; valid values: blank, none"),
        ({"drop_threshold": 0.5}, "drop_threshold=0.5 needs drop_frames"),
        ({"drop_layers": "1"}, "drop_layers=1 needs drop_frames"),
        (BLANK | {"drop_threshold": 1.0}, "drop_threshold=1.0 is out of range.*a probability"),
        (BLANK | {"drop_threshold": float("nan")}, "drop_threshold is NaN"),
        (BLANK | {"drop_layers": "2"}, "after layer 2 needs an exit there: add it to exit_layers"),
        (BLANK | {"drop_layers": "5"}, "frames cannot be dropped after layer 5"),
        (BLANK | {"drop_layers": "1,1"}, "repeats a layer"),
    ],
    ids=str,
)
def test_dropping_that_means_nothing_is_refused_in_words(six_layers, options, words):
    with pytest.raises(ValueError, match=words):
        build_model(six_layers, **options)
