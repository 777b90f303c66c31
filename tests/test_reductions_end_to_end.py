"""Reductions that change how a model is trained or decoded, through fairseq's own commands."""

import re
import shutil

import pytest
import torch
from helpers.commands import generate, last_checkpoint, log_of, train
from helpers.models import write_pretrained
from helpers.results import check_results


@pytest.fixture(scope="module")
def many(tmp_path_factory, corpus, pretrained):
    folder = tmp_path_factory.mktemp("many")
    options = ["model.downsample=conv", "model.downsample_factors=[1,2,3]", "model.depths=[1,2]"]
    train(folder, corpus, pretrained, *options, "model.logit_upsample=2")
    return last_checkpoint(folder)


def test_one_checkpoint_is_decoded_at_every_speed(many, corpus, tmp_path):
    macs = []
    for name, chosen in enumerate(
        [{}, {"downsample_factor": 2}, {"downsample_factor": 3}, {"keep_layers": "1"}]
    ):
        folder = tmp_path / str(name)
        generate(corpus, many, folder, "--model-overrides", str(chosen))
        compute = check_results(folder, corpus)
        assert compute["options"]["downsample_factors"] == [1, 2, 3]
        macs.append(compute["macs_per_second_by_stage"]["transformer"])
    whole, half, third, shallow = macs
    assert third < 0.7 * half < 0.7 * 0.6 * whole
    assert shallow < 0.7 * whole


def test_a_speed_that_was_not_trained_is_refused_in_words(many, corpus, tmp_path):
    done = generate(
        corpus, many, tmp_path, "--model-overrides", "{'downsample_factor': 4}", check=False
    )
    assert done.returncode
    assert "downsample_factor=4.0 is not among downsample_factors=[1.0, 2.0, 3.0]" in done.stderr


def test_frames_merge_in_a_model_that_was_not_trained_for_it(many, corpus, tmp_path):
    generate(corpus, many, tmp_path / "whole")
    override = ["--model-overrides", "{'merge_ratio': 0.3}"]
    done = generate(corpus, many, tmp_path / "merged", *override)
    whole, merged = (check_results(tmp_path / name, corpus) for name in ("whole", "merged"))
    assert "share_of_frames_by_layer" not in whole
    first, second = merged["share_of_frames_by_layer"]
    assert first == 1
    assert 0.69 < second < 0.73
    assert (
        merged["macs_per_second_by_stage"]["transformer"]
        < (whole["macs_per_second_by_stage"]["transformer"])
    )
    assert "decoded 11 utterances" in done.stdout


def test_a_front_end_is_matched_then_fine_tuned_and_decoded_without_the_cnn(tmp_path, corpus):
    w2v_path = write_pretrained(tmp_path / "lost.pt")
    options = ["model.frontend=fbank", "model.frontend_match_updates=3"]
    train(tmp_path / "run", corpus, w2v_path, *options)
    updates = re.findall(r"\[train_inner\]\[INFO\] - ({.*})", log_of(tmp_path / "run"))
    assert ["frontend_loss" in row for row in updates[:3]] == [True] * 3
    assert ["nll_loss" in row for row in updates] == [False] * 3 + [True]  # then CTC
    w2v_path.unlink()
    generate(corpus, last_checkpoint(tmp_path / "run"), tmp_path / "results")
    check_results(tmp_path / "results", corpus)


CNN = "w2v_encoder.w2v_model.feature_extractor."


def weights_in(checkpoint) -> dict:
    return torch.load(checkpoint, weights_only=False)["model"]


def same_weights(left: dict, right: dict) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name in left if torch.equal(left[name], right[name])]


@pytest.mark.parametrize("downsample", ["conv", "signal"])
def test_a_cnn_behind_a_shortened_waveform_is_matched_and_then_stays(tmp_path, corpus, downsample):
    w2v_path = write_pretrained(tmp_path / "lost.pt")
    options = [f"model.downsample={downsample}", "model.downsample_factor=2"]
    options += ["model.frontend_match_updates=3", "model.feature_grad_mult=0.0"]
    options += ["checkpoint.save_interval_updates=1", "optimization.max_update=6"]
    folder = tmp_path / "whole"
    train(folder, corpus, w2v_path, *options)
    updates = re.findall(r"\[train_inner\]\[INFO\] - ({.*})", log_of(folder))
    assert ["frontend_loss" in row for row in updates[:3]] == [True] * 3
    assert ["nll_loss" in row for row in updates] == [False] * 3 + [True] * 3  # CTC
    saved = {
        int(path.stem.split("_")[-1]): path for path in folder.glob("checkpoints/checkpoint_?_?.pt")
    }
    at_update = {update: weights_in(path) for update, path in saved.items()}
    cnn = {name for name in at_update[1] if name.startswith(CNN)}
    assert not cnn & set(same_weights(at_update[1], at_update[3]))
    assert cnn <= set(same_weights(at_update[3], at_update[6]))
    learned = set(at_update[1]) - set(same_weights(at_update[1], at_update[3]))
    assert learned == cnn | {
        name for name in at_update[1] if name.startswith("w2v_encoder.waveform_reduction.conv.")
    }
    # nor would momentum move it, of several GPUs and in fp16, which have a gradient of zero there
    momentum = torch.load(saved[5], weights_only=False)["last_optimizer_state"]["state"].values()
    still = [m for m in momentum if m["exp_avg_sq"].any() and not m["exp_avg"].any()]
    assert len(still) == len(cnn)
    for broken_off in (2, 5):  # while it is matched, and afterwards
        resumed = tmp_path / f"after_{broken_off}"
        (resumed / "checkpoints").mkdir(parents=True)
        shutil.copy(saved[broken_off], last_checkpoint(resumed))
        train(resumed, corpus, w2v_path, *options)
        again = weights_in(last_checkpoint(resumed))
        assert len(same_weights(again, at_update[6])) == len(again)
    w2v_path.unlink()
    generate(corpus, last_checkpoint(folder), tmp_path / "results")
    check_results(tmp_path / "results", corpus)


def test_a_cnn_is_matched_on_audio_without_labels_and_then_fine_tuned(tmp_path, corpus, pretrained):
    """The two commands of docs/fine-tune.md."""
    data = shutil.copytree(corpus, tmp_path / "data")
    shutil.copy(data / "train.tsv", data / "unlabelled.tsv")
    num_rows = len((data / "unlabelled.tsv").read_text().splitlines()) - 1
    (data / "unlabelled.ltr").write_text("\n" * num_rows)
    conv2 = ["model.downsample=conv", "model.downsample_factor=2"]
    options = ["dataset.train_subset=unlabelled", "dataset.disable_validation=true"]
    options += ["model.frontend_match_updates=2", "optimization.max_update=2"]
    train(tmp_path / "matched", data, pretrained, *conv2, *options)
    matched = last_checkpoint(tmp_path / "matched")
    options = ["optimization.max_update=2"]
    train(tmp_path / "tuned", data, matched, *options)
    before, after = weights_in(matched), weights_in(last_checkpoint(tmp_path / "tuned"))
    kept = same_weights(before, after)
    assert {name for name in before if name.startswith(CNN)} <= set(kept)
    assert "w2v_encoder.proj.weight" not in kept
    assert "w2v_encoder.waveform_reduction.conv.weight" not in kept
