"""Choosing a threshold: the table worked out by hand."""

import operator

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from helpers.commands import REPO
from helpers.models import write_finetuned, write_pretrained

from fairseq_speedup.__main__ import main
from fairseq_speedup.transformer.early_exit import EXIT_CRITERIA, ExitCriterion
from fairseq_speedup.without_training import calibration
from fairseq_speedup.without_training.calibration import Observed


@pytest.fixture
def observed():
    # 3 utterances, exits after 2 and 4 of 6 layers
    return Observed(
        measured=np.array([[0.1, 0.05], [0.5, 0.2], [0.9, 0.8]]),
        errors=np.array([[1, 0, 0], [4, 1, 1], [5, 3, 2]]),
        layers=np.array([2, 4, 6]),
        num_words=20,
    )


@pytest.mark.parametrize(
    ("threshold", "wer_percent", "mean_layers"),
    [
        (0.01, 15.0, 6.0),  # nobody leaves: 0 + 1 + 2 errors
        (0.3, 20.0, 4.0),  # after 2, 4 and 6 layers: 1 + 1 + 2 errors
        (1.0, 50.0, 2.0),  # everyone leaves at the first exit
    ],
)
def test_each_utterance_leaves_at_its_first_exit_below_the_threshold(
    observed, threshold, wer_percent, mean_layers
):
    row = observed.at(threshold, "entropy")
    assert row.wer_percent == pytest.approx(wer_percent)
    assert row.mean_layers == pytest.approx(mean_layers)


def test_similarity_leaves_above_the_threshold(observed):
    row = observed.at(0.6, "similarity")
    assert row.mean_layers == pytest.approx((6 + 6 + 2) / 3)


def test_without_exits_is_the_last_head(observed):
    row = observed.without_exits()
    assert (row.wer_percent, row.mean_layers) == (pytest.approx(15), 6)


def test_thresholds_lie_between_what_was_measured(observed):
    thresholds = observed.thresholds(3)
    assert thresholds == sorted(thresholds)
    assert len(thresholds) == 3
    assert not set(thresholds) & set(observed.measured.flatten().tolist())
    assert len(observed.thresholds(100)) == 5  # between six values


def calibrated(observed, budget, tmp_path, capsys, monkeypatch) -> list[str]:
    """Lines that the command prints after its table: a head, without exits, five thresholds."""
    monkeypatch.setattr(calibration, "observe", lambda args: observed)
    checkpoint = tmp_path / "best.pt"
    checkpoint.touch()
    given = ["--path", str(checkpoint), "--wer-budget", str(budget)]
    assert main(["calibrate", str(tmp_path), *given]) == 0
    return capsys.readouterr().out.splitlines()[7:]


@pytest.mark.parametrize(
    ("budget", "mean_layers", "threshold"),
    [
        (0, 5.33, 0.075),  # as without exits: 15 %
        (4.9, 5.33, 0.075),
        (5, 4, 0.35),  # 20 %, as at 0.15, where it takes 4.67 layers
        (20, 3.33, 0.65),  # 35 %
        (25, 2.67, 0.85),  # 40 %
    ],
)
def test_the_threshold_with_the_fewest_layers_within_the_budget_is_chosen(
    observed, budget, mean_layers, threshold, tmp_path, capsys, monkeypatch
):
    """The budget is of points beyond the error rate without exits."""
    said, options = calibrated(observed, budget, tmp_path, capsys, monkeypatch)
    assert said == (
        f"within {float(budget)} points of WER: {mean_layers:.2f} layers instead of 6.00, with"
    )
    assert f"{{'exit_criterion': 'entropy', 'exit_threshold': {threshold}}}" in options


def test_that_no_threshold_keeps_the_budget_is_said(observed, tmp_path, capsys, monkeypatch):
    observed.errors[:, :2] += 2
    (said,) = calibrated(observed, 1, tmp_path, capsys, monkeypatch)
    assert said == "no threshold keeps the WER within 1.0 points of 15.00"


def test_a_criterion_of_ones_own_is_calibrated(corpus, tmp_path, capsys, monkeypatch):
    def loudness(*, hidden, lengths, **unused):
        return hidden.square().sum(dim=(0, 2)) / lengths

    monkeypatch.setitem(EXIT_CRITERIA, "loudness", ExitCriterion(loudness, operator.gt))
    w2v_path = write_pretrained(tmp_path / "tiny.pt", encoder_layers=3)
    dictionary = Dictionary.load(str(corpus / "dict.ltr.txt"))
    checkpoint = write_finetuned(tmp_path / "best.pt", w2v_path, dictionary, exit_layers="0,1")
    command = ["--user-dir", str(REPO / "fairseq_speedup"), "calibrate", str(corpus), "--cpu"]
    command += ["--path", str(checkpoint), "--wer-budget", "1000"]
    assert main([*command, "--exit-criterion", "loudness"]) == 0
    printed = capsys.readouterr().out
    assert "{'exit_criterion': 'loudness', 'exit_threshold': " in printed
    rows = [line.split() for line in printed.splitlines()[2:-2]]
    depths = [float(mean_layers) for _, _, mean_layers in rows]
    assert depths == sorted(depths)  # leaves above the threshold
    assert depths[0] < depths[-1] <= 3


def test_a_model_that_gives_no_numbers_is_refused(corpus, tmp_path, capsys):
    w2v_path = write_pretrained(tmp_path / "tiny.pt", encoder_layers=3)
    dictionary = Dictionary.load(str(corpus / "dict.ltr.txt"))
    checkpoint = write_finetuned(tmp_path / "best.pt", w2v_path, dictionary, exit_layers="0,1")
    state = torch.load(checkpoint, weights_only=False)
    state["model"]["w2v_encoder.proj.bias"][3] = float("nan")
    torch.save(state, checkpoint)
    assert main(["calibrate", str(corpus), "--cpu", "--path", str(checkpoint)]) == 1
    said = capsys.readouterr().err
    assert "the model gives no numbers (NaN) for utterance " in said
    assert "fp16" not in said


@pytest.mark.parametrize("criterion", ["none", "layer", "louder"])
def test_a_criterion_without_anything_to_measure_is_refused(criterion, corpus, tmp_path, capsys):
    (tmp_path / "none.pt").touch()
    command = ["calibrate", str(corpus), "--path", str(tmp_path / "none.pt")]
    command += ["--exit-criterion", criterion]
    assert main(command) == 1
    assert f"--exit-criterion {criterion} is unknown; valid values: entropy, similarity" in (
        capsys.readouterr().err
    )
    user_dir = ["--user-dir", str(REPO / "fairseq_speedup")]  # it might have registered one
    assert main([*user_dir, *command]) == 1
    assert f"--exit-criterion {criterion} measures nothing" in capsys.readouterr().err
