"""Training that goes on from a reduced model: model.w2v_path has the reductions, and keeps them."""

import pytest
import torch
from fairseq.data import Dictionary
from helpers.models import batch_of, build_model, finetuned_state, write_pretrained

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.config import reductions
from fairseq_speedup.transformer.early_exit import ExitOptionError

UPSAMPLING = "w2v_encoder.frame_reduction.upsamplings.2.linear.weight"
CONV2 = {"downsample": "conv", "downsample_factor": 2.0}


@torch.no_grad()
def logits_of(model):
    return model(**batch_of([9000, 7000]))["encoder_out"]


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    return write_pretrained(tmp_path_factory.mktemp("four") / "four.pt", encoder_layers=4)


@pytest.fixture
def start(four_layers, tmp_path):
    """``start(**options)``: a model with these reductions, and its file."""

    def write(**options):
        model = build_model(four_layers, seed=7, **options)
        with torch.no_grad():  # what training would have changed
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        torch.save(finetuned_state(model, "speedup_ctc"), tmp_path / "start.pt")
        return model, tmp_path / "start.pt"

    return write


@pytest.mark.parametrize(
    "options",
    [
        {"frontend": "fbank"},
        {"frame_pool": 2},
        CONV2,
        {"keep_layers": "0,2"},
        {"keep_layers": "2", "frame_pool": 2},
        {"head": "mlp", "frame_pool": 2},
        {"frame_pool": 2, "logit_upsample": 2},
        {"exit_layers": "1,2", "exit_criterion": "entropy", "exit_threshold": 0.2},
        {"frame_pools": [1, 2]},
        {"merge_ratio": 0.1},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_it_is_the_same_model(start, options):
    model, path = start(**options)
    again = build_model(path, seed=3)
    assert reductions(again.cfg) == reductions(model.cfg)
    assert torch.equal(logits_of(again), logits_of(model))
    ours, theirs = again.state_dict(), model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_may_be_reduced_further(start):
    """Filterbanks, and then frame pooling: the transformer hears what it heard."""
    model, path = start(frontend="fbank", frontend_match_updates=0)
    pooled = build_model(path, seed=3, frame_pool=2)
    assert reductions(pooled.cfg) == {"frontend": "fbank", "frame_pool": 2}
    theirs, ours = model.state_dict(), pooled.state_dict()
    new = {name for name in ours if name not in theirs}
    assert new
    assert all(name.startswith("w2v_encoder.frame_reduction.") for name in new)
    assert all(torch.equal(ours[name], theirs[name]) for name in set(ours) - new)


def test_what_the_config_says_of_a_stage_goes_before(start, caplog):
    caplog.set_level("INFO")
    _, path = start(frame_pools=[1, 2, 3], keep_layers="3")
    one_speed = build_model(path, frame_pool=2)
    assert reductions(one_speed.cfg) == {"frame_pool": 2, "keep_layers": "3"}
    assert list(one_speed.w2v_encoder.frame_reduction.upsamplings) == ["2"]
    assert "which goes on with keep_layers=3; replaced: frame_pools=[1, 2, 3]" in caplog.text


def test_a_speed_that_is_not_among_the_choices_goes(start, caplog):
    caplog.set_level("INFO")
    _, path = start(frame_pool=3, keep_layers="3")
    many = build_model(path, frame_pools=[1, 2])
    assert reductions(many.cfg) == {"frame_pools": [1, 2], "keep_layers": "3"}
    assert "which goes on with keep_layers=3; replaced: frame_pool=3" in caplog.text
    among = build_model(path, frame_pools=[1, 3])
    assert reductions(among.cfg) == {"frame_pools": [1, 3], "keep_layers": "3", "frame_pool": 3}


def test_what_the_config_says_again_is_not_replaced(start, caplog):
    caplog.set_level("INFO")
    _, path = start(frame_pool=2, keep_layers="3")
    again = build_model(path, frame_pool=2)
    assert reductions(again.cfg) == {"frame_pool": 2, "keep_layers": "3"}
    assert "goes on with" in caplog.text and "replaced" not in caplog.text


def test_an_option_alone_leaves_the_others_of_its_stage(start):
    _, path = start(frame_pool=2, frame_pool_method="conv", exit_layers="1,2")
    again = build_model(path, frame_pool=2, exit_criterion="entropy", exit_threshold=0.3)
    assert reductions(again.cfg) == {
        **{"frame_pool": 2, "frame_pool_method": "conv", "exit_layers": "1,2"},
        **{"exit_criterion": "entropy", "exit_threshold": 0.3},
    }


def test_options_of_the_training_that_made_it_are_not_kept(start):
    _, path = start(frontend="fbank", frontend_match_updates=5)
    assert reductions(build_model(path).cfg) == {"frontend": "fbank"}
    with pytest.raises(CheckpointError, match=r"saved without its CNN.*frontend_match_updates=0"):
        build_model(path, frontend="fbank", frontend_match_updates=5)


def test_its_cnn_can_be_a_teacher(start):
    model, path = start(frame_pool=2)
    matching = build_model(path, **CONV2, frontend_match_updates=5)
    assert reductions(matching.cfg) == {**CONV2, "frame_pool": 2, "frontend_match_updates": 5}
    teacher = matching.w2v_encoder.cnn_teacher
    assert teacher.is_like(model.w2v_encoder.w2v_model.feature_extractor)


def test_filterbanks_go_where_its_cnn_was(start):
    model, path = start(frame_pool=2)
    fbank = build_model(path, frontend="fbank")
    assert reductions(fbank.cfg) == {"frontend": "fbank", "frame_pool": 2}
    assert torch.equal(fbank.state_dict()[UPSAMPLING], model.state_dict()[UPSAMPLING])


def test_a_head_of_another_kind_is_new(start):
    _, path = start(frame_pool=2, exit_layers="1")
    other = build_model(path, head="mlp")
    assert reductions(other.cfg) == {"head": "mlp", "frame_pool": 2, "exit_layers": "1"}


def test_a_head_for_other_labels_keeps_those_that_it_has(start):
    model, path = start(frame_pool=2)
    state = torch.load(path, weights_only=False)
    dictionary = Dictionary()
    for symbol in "ABCDEFGHIJ":
        dictionary.add_symbol(symbol)
    state["task_state"] = {"target_dictionary": dictionary}
    torch.save(state, path)
    other = build_model(path, labels="JIHGFEDCBAK", num_labels=15)
    old, new = model.w2v_encoder.proj.weight, other.w2v_encoder.proj.weight
    assert torch.equal(new[:4], old[:4])
    assert torch.equal(new[4:14], old[4:].flip(0))
    assert torch.equal(new[14], old[3])  # as <unk>


@pytest.mark.parametrize(
    ("trained", "asked", "words"),
    [
        (
            CONV2,
            {"downsample_factor": 3.0},
            "it has downsample=conv, downsample_factor=2.0, .*factor is 2 in the checkpoint and 3",
        ),
        (CONV2, {"downsample": "signal", "downsample_factor": 2.0}, "options downsample, downs"),
        (
            {"frontend": "fbank"},
            {"frontend_frame_ms": 40},
            r"it has frontend=fbank, frontend_frame_ms=20\).*options frontend",
        ),
        ({"prune_target": 0.6}, {}, r"gates of pruning .*prune_target=0.6.* not cut yet: .* prune"),
        ({"prune_target": 0.6}, {"prune_warmup_updates": 9}, "not cut yet"),
        ({"keep_layers": "2"}, {"keep_layers": "3"}, "keep_layers names layers .* lacks: 2"),
        ({"frame_pool": 2}, {"ddp_backend": "fully_sharded"}, r"reduced .*frame_pool=2\)"),
    ],
)
def test_what_does_not_fit_names_file_and_option(start, trained, asked, words):
    _, path = start(**trained)
    with pytest.raises(ValueError, match=rf"w2v_path={path}.*{words}"):
        build_model(path, **asked)


def test_what_is_not_legal_together_is_refused(start):
    _, path = start(frontend="fbank")
    words = rf"exit_heads_only needs exits.*; model.w2v_path={path} has frontend=fbank$"
    with pytest.raises(ExitOptionError, match=words):
        build_model(path, exit_heads_only=True)
