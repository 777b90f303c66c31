"""Whole layers left out, those that change what they are given least."""

import re

import pytest
import torch
from helpers.commands import prune_command
from helpers.corpora import letters_dictionary, write_noise
from helpers.models import batch_of, build_model, finetuned_families, load

from fairseq_speedup.__main__ import main
from fairseq_speedup.importance.layers import influence_of_layers
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.profiling.fvcore_count import check_macs

SIZES = {
    "encoder_layers": 5,
    "encoder_embed_dim": 24,
    "encoder_attention_heads": 4,
    "conv_pos_groups": 2,
}


def do_nothing(weights: dict, options: dict) -> None:
    """Makes layer 2 give what it is given, and layer 1 little else."""
    for index, scale in ((2, 0.0), (1, 0.3)):
        for name in ("self_attn.out_proj", "fc2"):
            for kind in ("weight", "bias"):
                weights[f"w2v_encoder.w2v_model.encoder.layers.{index}.{name}.{kind}"].mul_(scale)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("speech"), a=2, b=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return finetuned_families(folder, letters_dictionary(), SIZES, do_nothing)


@torch.no_grad()
def logits_of(model):
    output = model.eval()(**batch_of([9000, 6000]))
    return output["encoder_out"][~output["padding_mask"].T]


def test_influence_is_of_frames_whatever_the_utterances(whole):
    model = load(whole("large"))
    one, other = torch.randn(2, 8320).unbind()
    found = influence_of_layers(model, [one, other[:4320]])
    assert list(found) == [0, 1, 2, 3, 4]
    assert found[2] == pytest.approx(0, abs=1e-6)
    assert 0 < found[1] < min(found[0], found[3], found[4])
    first, second = influence_of_layers(model, [one]), influence_of_layers(model, [other[:4320]])
    counts = [model.w2v_encoder.frame_lengths(n) for n in (8320, 4320)]
    expected = (counts[0] * first[3] + counts[1] * second[3]) / sum(counts)
    assert found[3] == pytest.approx(expected, rel=1e-4)


def test_influence_is_of_all_layers_and_of_no_frame_of_padding(whole):
    leaving = {"exit_criterion": "entropy", "exit_threshold": 100.0}  # all leave at the first exit
    model = load(whole("large", exit_layers="1", **leaving))
    encoder, seen = model.w2v_encoder, []
    transformer = encoder.w2v_model.encoder
    transformer.required_seq_len_multiple = 4
    hook = transformer.layers[4].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = influence_of_layers(model, [torch.randn(8320)])
    hook.remove()
    assert list(found) == [0, 1, 2, 3, 4]
    assert [len(frames) for frames in seen] == [encoder.frame_lengths(8320)] == [25]
    with pytest.raises(ValueError, match="shorter than one output frame"):
        influence_of_layers(model, [torch.randn(10)])
    assert not encoder.exit.observed and transformer.required_seq_len_multiple == 4


@pytest.mark.parametrize("kind", ["base", "large", "wavlm"])
def test_those_that_do_least_go_and_the_rest_is_a_plain_model(
    whole, speech, tmp_path, capsys, kind
):
    output = tmp_path / "fewer.pt"
    assert main(prune_command(whole(kind), speech, output, "--layers", "3")) == 0
    said = capsys.readouterr().out
    fewer = load(output, padding="masked")
    if kind == "large":  # norm first: a layer that adds nothing does nothing
        assert said.index("layer 2 changes") < said.index("layer 1 changes")
        kept = load(whole(kind), keep_layers="0,3,4", padding="masked")
        assert torch.equal(logits_of(fewer), logits_of(kept))
        assert "layers 0, 3, 4 of 5 stay" in said
    assert fewer.cfg.w2v_args.model.encoder_layers == 3 and fewer.cfg.keep_layers == "all"
    found = check_macs([fewer], 16000)
    assert found["closed_form"] == found["fvcore"]
    trained = build_model(output, padding="masked", labels=load_labels(fewer))
    assert len(trained.w2v_encoder.kept_layers) == 3


def load_labels(model):
    return [f"label{n}" for n in range(model.w2v_encoder.proj.out_features)]


def test_layers_with_exits_stay_and_are_named_anew(whole, speech, tmp_path, capsys):
    path, output = whole("large", exit_layers="2"), tmp_path / "fewer.pt"
    assert main(prune_command(path, speech, output, "--layers", "4")) == 0
    assert "layer 1 changes" in capsys.readouterr().out
    assert load(output).w2v_encoder.exit_layers == [1]
    assert main(prune_command(path, speech, tmp_path / "no.pt", "--layers", "2")) == 1
    assert "--layers 2 is out of range, it must be 3 to 4" in capsys.readouterr().err


def test_layers_after_which_frames_merge_stay_where_they_are_named(whole, speech, tmp_path, capsys):
    output, other = tmp_path / "fewer.pt", tmp_path / "other.pt"
    named = whole("large", merge_ratio=0.2, merge_layers="1,2")
    assert main(prune_command(named, speech, output, "--layers", "4")) == 0
    assert "layer 3 changes" in capsys.readouterr().out
    assert load(output).cfg.merge_layers == "1,2"
    assert main(prune_command(named, speech, other, "--layers", "3")) == 1
    assert "options name stay (exit_layers, drop_layers, merge_layers)" in capsys.readouterr().err
    every = whole("large", merge_ratio=0.2)
    assert main(prune_command(every, speech, other, "--layers", "3")) == 0


def test_a_pruned_model_keeps_the_sizes_of_the_layers_that_stay(whole, speech, tmp_path, capsys):
    pruned, output = tmp_path / "pruned.pt", tmp_path / "fewer.pt"
    assert main(prune_command(whole("large"), speech, pruned, "--target", "0.6")) == 0
    assert main(prune_command(pruned, speech, output, "--layers", "4")) == 0
    gone = int(re.search(r"layer (\d) changes", capsys.readouterr().out)[1])
    kept = load(pruned, keep_layers=",".join(str(n) for n in range(5) if n != gone))
    assert torch.equal(logits_of(load(output)), logits_of(kept))
    counts = [MacCounter(each).count([160000]).sum().total for each in (kept, load(output))]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "5"], "has 5 layers, of which the first, the last"),
        (["--layers", "1"], "--layers 1 is out of range, it must be 2 to 4"),
        (["--layers", "0"], "--layers 0 is out of range; it must be 1 or more"),
        (["--layers", "3", "--target", "0.5"], "give one, then the other"),
        (["--layers", "3", "--parts", "heads"], "--parts is for --target"),
        (["--layers", "3", "--any-share"], "--any-share is for gates that were learned, --layers"),
    ],
)
def test_numbers_that_mean_nothing(whole, speech, tmp_path, capsys, options, words):
    output = tmp_path / "no.pt"
    assert main(prune_command(whole("base"), speech, output, *options)) == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_a_model_of_many_depths_is_refused(whole, speech, tmp_path, capsys):
    path = whole("base", depths=[3, 5])
    assert main(prune_command(path, speech, tmp_path / "no.pt", "--layers", "4")) == 1
    assert "was trained at depths [3, 5]" in capsys.readouterr().err
