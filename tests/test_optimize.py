"""A faster model without training: what is tried, how it is combined, what is left."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from helpers.commands import REPO, parse_generation
from helpers.models import write_finetuned, write_pretrained
from helpers.processes import programs, run_forked
from hydra import compose, initialize_config_dir

from fairseq_speedup.__main__ import main
from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.commands import build_parser
from fairseq_speedup.commands.optimize import BEAM, decoding_of
from fairseq_speedup.config import switched_on
from fairseq_speedup.data.utterances import Recordings
from fairseq_speedup.inference import form_of
from fairseq_speedup.macs import MacCounter
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.optimize import candidates, made, run
from fairseq_speedup.optimize import outcome as written
from fairseq_speedup.optimize.bench import FEWEST_ROUNDS, ROUNDS, Bench, Measured, spread
from fairseq_speedup.optimize.candidates import Candidate, Subject
from fairseq_speedup.optimize.commands import options_of
from fairseq_speedup.optimize.made import checkpoint_of, path_of
from fairseq_speedup.optimize.search import Search, fastest, front
from fairseq_speedup.optimize.setup import Setup
from fairseq_speedup.optimize.suggestions import SUGGESTIONS, can_change, suggestions
from fairseq_speedup.optimize.training import SECONDS, UPDATES, Recipe
from fairseq_speedup.optimize.worker import Worker, batches_of, export, exported_path
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

SUBJECT = Subject(
    kept_layers=[0, 1, 2, 3, 4, 5],
    exits=[],
    can_merge=True,
    can_prune=True,
    many={},
    padding_gets_in=False,
    forms=["fp32", "bf16"],
    engines=[],
    decoder="greedy",
    beam=1,
)


class NoProgress:
    def begin(self, candidate): ...

    def end(self, measured): ...


class Table:
    """Stands for a bench: what is measured follows from a formula.

    Attributes:
        asked: candidates, in order
    """

    def __init__(self, loss, time, subject=SUBJECT):
        self.loss, self.time, self.subject = loss, time, subject
        self.base = Candidate()
        self.measured, self.asked = {}, []
        self.measure(self.base)

    def measure(self, candidate):
        if candidate.key not in self.measured:
            self.asked.append(candidate)
            ratios = [self.time(candidate)]
            self.measured[candidate.key] = Measured(
                candidate, loss=self.loss(candidate), ratios=ratios
            )
        return self.measured[candidate.key]

    def is_measured(self, candidate):
        return candidate.key in self.measured

    def influence_of_layers(self):
        return {index: 0.1 * ((index + 2) % 6) for index in self.subject.kept_layers}


def num_layers(candidate) -> int:
    return len(candidates.kept_of(candidate, SUBJECT))


def loss_of(candidate) -> float:
    """A point a layer, half a point for bf16, merging by a hundred times its share."""
    lost = 6 - num_layers(candidate) + 0.5 * (candidate.form == "bf16")
    return lost + 100 * candidate.overrides.get("merge_ratio", 0)


def time_of(candidate) -> float:
    form = {"none": 1.0, "fp32": 0.8, "bf16": 0.5}[candidate.form]
    merged = 1 - 4 * candidate.overrides.get("merge_ratio", 0)
    return form * (1 + num_layers(candidate)) / 7 * merged * (2 if candidate.batch_size > 1 else 1)


def searched(budgets, loss=loss_of, time=time_of, subject=SUBJECT, deadline=float("inf")):
    bench = Table(loss, time, subject)
    search = Search(bench, num_cores=1, deadline=deadline, progress=NoProgress())
    search.run(budgets)
    return bench, search


@pytest.mark.parametrize("budget", [0, 0.5, 1, 2.5, 5])
def test_what_is_chosen_keeps_the_budget_and_is_the_fastest_measured(budget):
    bench, _ = searched([budget])
    chosen = fastest(bench, budget)
    assert chosen.loss <= budget
    assert all(each.time >= chosen.time for each in bench.measured.values() if each.loss <= budget)


@pytest.mark.parametrize(("saved", "is_worth_it"), [(0.03, False), (0.2, True)])
def test_words_are_not_spent_for_next_to_no_time(saved, is_worth_it):
    def time(candidate):
        return time_of(replace(candidate, overrides={})) * (1 - saved * _merges(candidate))

    def loss(candidate):
        return 10.0 * (num_layers(candidate) < 6) + 0.3 * _merges(candidate)

    def _merges(candidate):
        return candidate.overrides.get("merge_ratio", 0) > 0

    bench, _ = searched([1], loss, time)
    assert _merges(fastest(bench, 1).candidate) == is_worth_it
    assert any(map(_merges, bench.asked))


def test_steps_are_combined_and_measured_together():
    bench, _ = searched([2.5])
    chosen = fastest(bench, 2.5).candidate
    assert chosen.form == "bf16" and num_layers(chosen) == 4
    assert fastest(bench, 2.5).loss == pytest.approx(loss_of(chosen))
    # of those between the first and the last, 4 and then 1 change their input least
    assert candidates.kept_of(chosen, SUBJECT) == [0, 2, 3, 5]


def test_nothing_is_measured_twice_and_a_ladder_ends_where_the_budget_does():
    bench, _ = searched([1, 0.5, 2])
    keys = [each.key for each in bench.asked]
    assert len(keys) == len(set(keys))
    ratios = [each.overrides.get("merge_ratio", 0) for each in bench.asked]
    assert max(ratios) <= 0.05  # 0.05 is 5 points: the first beyond every budget


def test_a_faster_combination_that_costs_more_than_its_parts_is_not_taken():
    def loss(candidate):
        both = candidate.form == "bf16" and num_layers(candidate) < 6
        return loss_of(candidate) + 10 * both

    bench, _ = searched([1.5], loss)
    chosen = fastest(bench, 1.5)
    assert chosen.loss <= 1.5 and not (
        chosen.candidate.form == "bf16" and num_layers(chosen.candidate) < 6
    )


def test_after_the_time_nothing_new_is_measured_but_the_first_candidate():
    bench, search = searched([1], deadline=-1.0)
    assert search.out_of_time and len(bench.asked) == 2
    assert fastest(bench, 1).candidate == bench.asked[1] != bench.base


class Clock:
    """Stands for a process in which everything takes as long."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def load(self, candidate): ...

    def call(self, method, *arguments):
        return {"seconds": self.seconds, "peak_memory": 1}[method]


def bench_of(time: float) -> Bench:
    """In which the model as it is takes a second, and another has taken half of one."""
    bench = Bench.__new__(Bench)
    bench.base, bench.timed, bench.num_samples = Candidate(1, 1), [0], [16000]
    bench.deadline = bench.deadline_of_base = float("inf")
    bench.ours, bench.other = Clock(1.0), Clock(time)
    as_it_is = Measured(bench.base, loss=-0.1, ratios=[1.0])
    faster = Measured(replace(bench.base, form="fp32"), loss=0.0, ratios=[0.5])
    bench.measured = {each.candidate.key: each for each in (as_it_is, faster)}
    return bench


@pytest.mark.parametrize(
    "time, loss, rounds",
    [
        (0.8, 0.0, FEWEST_ROUNDS),  # another takes 0.5 and loses as much
        (0.8, -0.1, ROUNDS),  # it loses less than that one
        (0.55, 0.0, ROUNDS),  # near
        (1.3, -0.1, FEWEST_ROUNDS),  # behind the model as it is
    ],
)
def test_what_is_behind_from_the_start_is_not_timed_to_the_end(time, loss, rounds):
    bench = bench_of(time)
    ratios, _ = bench._timed(replace(bench.base, form="bf16"), loss)
    assert ratios == [time] * rounds


@pytest.mark.parametrize("late", ["deadline", "deadline_of_base"])
def test_what_comes_late_is_timed_for_a_few_rounds(late):
    bench = bench_of(0.4)
    setattr(bench, late, float("-inf"))
    rounds = {
        "deadline": len(bench._timed(replace(bench.base, form="bf16"), 0.0)[0]),
        "deadline_of_base": len(bench._timed(bench.base, -0.1)[0]),
    }
    assert rounds.pop(late) == FEWEST_ROUNDS and set(rounds.values()) == {ROUNDS}


def test_the_front_has_no_candidate_that_another_beats():
    bench, _ = searched([5])
    best = front(bench)
    times, losses = [each.time for each in best], [each.loss for each in best]
    assert times == sorted(times) and losses == sorted(losses, reverse=True)
    for each in bench.measured.values():
        assert any(one.time <= each.time and one.loss <= each.loss for one in best)


@pytest.mark.parametrize(("lost", "reverts"), [(0.3, False), (2.0, True), (float("inf"), False)])
def test_parts_stay_in_fp32_only_where_int8_loses_too_much(lost, reverts):
    subject = replace(SUBJECT, forms=[], engines=["openvino", "openvino int8"], can_merge=False)
    inner = replace(subject, kept_layers=[0, 1])  # none is left out

    def loss(candidate):
        whole = candidate.engine == "openvino int8" and candidate.int8_budget is None
        return lost if whole else 0.0

    def time(candidate):
        kept = 0.2 * (candidate.int8_budget is not None)
        return {"torch": 1, "openvino": 0.9, "openvino int8": 0.5}[candidate.engine] + kept

    bench, _ = searched([0.5], loss, time, inner)
    chosen = fastest(bench, 0.5).candidate
    expected = "openvino" if lost == float("inf") else "openvino int8"
    assert (chosen.engine, chosen.int8_budget) == (expected, 0.5 if reverts else None)
    asked = {each.int8_budget for each in bench.asked}
    assert asked == ({None, 0.5} if reverts else {None})
    assert chosen.described(bench.base) == {
        0.3: "OpenVINO int8",
        2.0: "OpenVINO int8 within 0.5",
    }.get(lost, "OpenVINO")


def test_each_candidate_of_an_engine_has_a_file_of_its_own():
    int8 = Candidate({"keep_layers": "0,2"}, engine="openvino int8")
    named = [int8, replace(int8, int8_budget=0.5), replace(int8, int8_budget=1.0)]
    named += [replace(int8, engine=each) for each in ("onnx", "onnx int8", "openvino")]
    paths = [exported_path("folder", each) for each in named]
    assert len(set(paths)) == 6
    assert [path.endswith(".xml") for path in paths] == [True] * 3 + [False] * 2 + [True]
    assert len({each.transcripts_key for each in named}) == 6


def smaller_loss(candidate) -> float:
    """Half a point for each tenth of the MACs that pruning takes, 0.3 more for low rank."""
    pruned = 1 - (candidate.pruned or 1)
    return 5 * pruned + 0.3 * bool(candidate.low_rank)


def smaller_time(candidate) -> float:
    return (candidate.pruned or 1) * (0.9 if candidate.low_rank else 1)


@pytest.mark.parametrize(
    ("budget", "pruned", "low_rank"),
    [(0.4, None, True), (0.5, 0.9, False), (0.8, 0.9, True), (1.2, 0.8, False), (9, 0.7, True)],
)
def test_pruning_and_then_low_rank_are_combined_while_the_budget_holds(budget, pruned, low_rank):
    subject = replace(SUBJECT, forms=[], kept_layers=[0, 1], can_merge=False, can_lower_ranks=True)
    bench, _ = searched([budget], smaller_loss, smaller_time, subject)
    chosen = fastest(bench, budget).candidate
    assert (chosen.pruned, bool(chosen.low_rank)) == (pruned, low_rank)
    alone = [each for each in bench.asked if not each.low_rank and each.batch_size == 1]
    targets = [each.pruned for each in alone]
    assert targets == {0.4: [None, 0.9], 0.5: [None, 0.9, 0.8], 0.8: [None, 0.9, 0.8]}.get(
        budget, [None, 0.9, 0.8, 0.7]
    )
    whole = replace(subject, can_prune=False, can_lower_ranks=False)
    bench, _ = searched([budget], smaller_loss, smaller_time, whole)
    assert not any(each.is_made for each in bench.asked)


def test_a_stronger_one_is_tried_where_a_milder_one_cannot_be_run():
    subject = replace(SUBJECT, forms=[], kept_layers=[0, 1], can_merge=False, can_prune=False)
    bench = Table(smaller_loss, smaller_time, replace(subject, can_lower_ranks=True))
    mildest = replace(bench.base, low_rank=list(candidates.ENERGIES[0]))
    bench.measured[mildest.key] = Measured(mildest, failed="no layer has so low a rank")
    Search(bench, num_cores=1, deadline=float("inf"), progress=NoProgress()).run([0.5])
    assert fastest(bench, 0.5).candidate.low_rank == list(candidates.ENERGIES[1])


def test_a_smaller_checkpoint_is_made_once_for_all_that_is_only_run_otherwise():
    layers = {"keep_layers": "0,2"}
    pruned = Candidate(layers, pruned=0.8, low_rank=[0.99, 0.999])
    merged = replace(pruned.with_overrides(merge_ratio=0.1), form="fp32")
    assert path_of("folder", merged) == path_of("folder", pruned)
    assert merged.loaded == {"merge_ratio": 0.1} and pruned.loaded == {}
    others = [Candidate(layers, pruned=0.8), Candidate(layers, pruned=0.7), Candidate(pruned=0.8)]
    others += [replace(pruned, low_rank=[0.99, 0.99]), replace(pruned, pruned=None)]
    assert len({path_of("folder", each) for each in [pruned, *others]}) == 6
    assert len({each.transcripts_key for each in [pruned, merged, *others]}) == 7
    assert len({each.macs_key for each in [pruned, merged, *others]}) == 7
    onnx = {exported_path("folder", replace(each, engine="onnx")) for each in [pruned, *others]}
    assert len(onnx) == 6
    described = pruned.described(Candidate())
    assert described == "keep_layers=0,2, pruned to 0.8, low rank at 0.99 and 0.999"


def test_layers_with_an_exit_the_first_and_the_last_stay():
    subject = replace(SUBJECT, exits=[2, 5])
    influence = dict.fromkeys(range(6), 0.0)
    found = candidates.without_a_layer(Candidate(), subject, influence, most=6)
    assert {each.overrides["keep_layers"] for each in found} == {
        *("0,2,3,4,5", "0,1,2,4,5", "0,1,2,3,5")
    }
    (cut,) = candidates.cut_at_exits(Candidate(), subject)
    assert cut.overrides == {"keep_layers": "0,1,2", "exit_layers": "none"}
    assert candidates.listed([3]) == "3,"  # a number alone would be so many layers


def test_a_model_of_many_speeds_is_tried_at_the_faster_ones():
    many = {"downsample_factor": ([1.0, 2.0, 3.0], 2.0), "keep_layers": ([2, 4, 6], 6)}
    found = candidates.speeds(Candidate(), replace(SUBJECT, many=many))
    assert [each.overrides for each in found] == [
        {"downsample_factor": 3.0},
        {"keep_layers": "4"},
        {"keep_layers": "2"},
    ]


def test_each_option_of_many_speeds_is_tried_and_they_are_combined():
    many = {"downsample_factor": ([1.0, 2.0], 1.0), "frame_pool": ([1, 2, 3], 1)}
    many["keep_layers"] = ([2, 4, 6], 6)
    subject = replace(SUBJECT, forms=[], can_merge=False, can_prune=False, many=many)

    def loss(candidate):
        given = candidate.overrides
        lost = {1: 0.0, 2: 0.3, 3: 9.0}[given.get("frame_pool", 1)]
        return lost + 5 * ("downsample_factor" in given) + 0.1 * (6 - num_layers(candidate))

    def time(candidate):
        return (1 + num_layers(candidate)) / candidate.overrides.get("frame_pool", 1)

    bench, _ = searched([1], loss, time, subject)
    assert fastest(bench, 1).candidate.overrides == {"frame_pool": 2, "keep_layers": "2"}
    asked = [each.overrides for each in bench.asked if each.batch_size == 1]
    assert asked == [
        {},
        {"downsample_factor": 2.0},
        *({"frame_pool": each} for each in (2, 3)),
        *({"frame_pool": 2, "keep_layers": each} for each in ("4", "2")),
    ]


def test_a_depth_is_a_number_of_first_layers_and_none_of_them_is_left_out():
    subject = replace(SUBJECT, many={"keep_layers": ([2, 4, 6], 6)}, exits=[1, 3])
    shallow = Candidate({"keep_layers": "4"})
    assert candidates.kept_of(shallow, subject) == [0, 1, 2, 3]
    assert candidates.kept_of(Candidate({"keep_layers": "4,"}), subject) == [4]
    (cut,) = candidates.cut_at_exits(shallow, subject)
    assert cut.overrides == {"keep_layers": "0,1", "exit_layers": "none"}
    assert len(candidates.merging(shallow, subject)) == len(candidates.MERGE_RATIOS)
    influence = dict.fromkeys(range(6), 0.0)
    assert candidates.without_a_layer(Candidate(), SUBJECT, influence, most=2)
    assert candidates.without_a_layer(Candidate(), subject, influence, most=2) == []


def test_a_beam_search_is_tried_with_fewer_frames_and_hypotheses():
    subject = replace(SUBJECT, decoder="beam", beam=40)
    found = [each.decoding for each in candidates.decoders(Candidate(), subject)]
    assert {"blank_skip_threshold": 0.99} in found
    assert [each["beam"] for each in found if "beam" in each] == [20, 10, 5]
    assert candidates.decoders(Candidate(), SUBJECT) == []


def test_batches_hold_every_utterance_once_and_no_more_than_they_may():
    num_samples = [5, 9, 3, 7, 7, 1]
    batches = batches_of(range(6), num_samples, 3, 16)
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    for batch in batches:
        assert len(batch) <= 3 and len(batch) * max(num_samples[i] for i in batch) <= 16


def test_utterances_are_spread_over_the_lengths():
    num_samples = [50, 10, 40, 20, 30, 60]
    assert spread(num_samples, 3) == [2, 3, 5]  # 40, 20 and 60
    assert spread(num_samples, 9) == list(range(6))


# -- the form that a checkpoint carries ----------------------------------------------------------


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("optimize")
    pretrained = write_pretrained(folder / "tiny.pt", encoder_layers=3)
    dictionary = Dictionary.load(str(corpus / "dict.ltr.txt"))
    return write_finetuned(folder / "best.pt", pretrained, dictionary)


def test_a_checkpoints_form_is_taken_where_none_is_asked_for(model_path, monkeypatch, capsys):
    model, _, _ = load_finetuned(str(model_path), "", {"inference_form": "fp32"})
    assert form_of("auto", model) == "fp32"
    assert form_of("none", model) == "none"
    assert form_of("bf16", model) == "bf16"
    plain, _, _ = load_finetuned(str(model_path), "")
    assert form_of("auto", plain) == "none"
    monkeypatch.setattr("fairseq_speedup.inference.form.product_here", lambda: None)
    narrow, _, _ = load_finetuned(str(model_path), "", {"inference_form": "int8"})
    assert form_of("auto", narrow) == "fp32"
    said = capsys.readouterr()
    assert "decodes in int8, which cannot be here" in said.err and not said.out


def test_an_unknown_form_in_a_checkpoint_is_refused(model_path):
    with pytest.raises(ValueError, match="unknown inference_form='int4'; valid values: none, fp32"):
        load_finetuned(str(model_path), "", {"inference_form": "int4"})


# -- start to finish -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, corpus, model_path):
    """A corpus whose labels are what the model says, so that it has no errors."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = (corpus / "test.tsv").read_text().splitlines()
    audio = [f"{rows[0]}/{row.split()[0]}" for row in rows[1:]]
    found = run_forked("fairseq-speedup", "transcribe", "--path", model_path, *audio)
    lines = found.stdout.splitlines()
    texts = [line.split("\t")[1] for line in lines]
    (folder / "valid.tsv").write_text("\n".join(rows) + "\n")
    labels = [" ".join("|".join(text.split())) + " |" for text in texts]
    (folder / "valid.ltr").write_text("\n".join(labels) + "\n")
    (folder / "dict.ltr.txt").write_text((corpus / "dict.ltr.txt").read_text())
    return folder


def optimize(*arguments, status=0) -> tuple[str, str]:
    """What it prints to standard output and error."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "executable", str(programs() / "python"))  # what it starts is forked
        found = main(["optimize", *map(str, arguments), "--cpu"])
    assert found == status, errors.getvalue()
    return out.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def outcome(labelled, model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outcome") / "faster"
    printed, _ = optimize(
        *(model_path, "--data", labelled, "--wer-budget", 30, "--output", folder, "--json")
    )
    return folder, json.loads(printed)


def test_the_result_is_what_was_promised(outcome):
    """The error rate in the table is the one that fairseq-generate prints with the command that is
    printed, to the last digit, and the checkpoint needs no option."""
    folder, found = outcome
    by_name = {each["name"]: each for each in found["lines"]}
    base, best = by_name["as it is"], by_name["best within 30"]
    saved = by_name.get("of these, in model.pt", best)
    assert base["error_rate"] == 0 and base["loss"] == 0
    assert best["loss"] <= 30 and best["time"] <= base["time"] * 1.02
    generated, transcribed = found["confirmed"]
    assert generated.endswith(f"WER: {saved['error_rate']:.2f}")
    assert saved["candidate"]["engine"] == "torch" and saved["loss"] <= 30
    model, _, _ = load_finetuned(str(folder / "model.pt"), "")
    for name, value in saved["candidate"]["overrides"].items():
        assert getattr(model.cfg, name) == value
    assert model.cfg.inference_form == saved["candidate"]["form"]
    assert "\t" in transcribed


def test_the_page_has_the_table_the_commands_and_what_training_would_add(outcome):
    folder, found = outcome
    page = (folder / "optimize.md").read_text()
    assert page.count("\n| ") == 1 + len(found["lines"])  # the rule under the head
    engine = found["lines"][1]["candidate"]["engine"].split()[0]
    written = {"torch": set(), "onnx": {"model.onnx"}, "openvino": {"model.xml", "model.bin"}}
    assert {each.name for each in folder.glob("model.*")} == {"model.pt"} | written[engine]
    for command in found["commands"]:
        assert command in page
    assert len(found["training"]) == 4 and "fairseq-hydra-train" in found["training"][0]["command"]
    assert (folder / "error_against_time.png").stat().st_size > 10_000


def test_a_run_that_was_broken_off_goes_on(outcome, labelled, model_path):
    """The log but for its end is there, and half of a line: what is there is not measured again,
    and the choice is made of all of it."""
    folder, found = outcome
    log = folder / "tried.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    there = len(lines) - 2
    log.write_text("".join(lines[:there]) + lines[there][:20])
    printed, _ = optimize(
        *(model_path, "--data", labelled, "--wer-budget", 30, "--output", folder, "--json")
    )
    again = log.read_text().splitlines(keepends=True)
    assert again[:there] == lines[:there] and len(again) > there
    assert json.loads(printed)["lines"][0] == found["lines"][0]


def test_other_data_in_the_same_folder_is_refused(outcome, model_path, corpus):
    folder, _ = outcome
    _, errors = optimize(
        *(model_path, "--data", corpus, "--wer-budget", 30, "--output", folder), status=1
    )
    assert "is of another run: data is" in errors and "--overwrite" in errors


def test_other_threads_in_the_same_folder_are_refused_by_name(labelled, outcome, model_path):
    folder, _ = outcome
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        _, errors = optimize(
            *(model_path, "--data", labelled, "--wer-budget", 30, "--output", folder), status=1
        )
    finally:
        torch.set_num_threads(before)
    assert f"threads (OMP_NUM_THREADS) is {before} there and {before + 1} now; name" in errors


def refused_again(labelled, outcome, model_path) -> str:
    folder, _ = outcome
    given = (model_path, "--data", labelled, "--wer-budget", 30, "--output", folder)
    _, errors = optimize(*given, status=1)
    return errors


def test_edited_labels_are_of_another_run(labelled, outcome, model_path):
    labels = labelled / "valid.ltr"
    found = labels.stat()
    os.utime(labels, (0, 0))
    try:
        errors = refused_again(labelled, outcome, model_path)
    finally:
        os.utime(labels, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert re.search(r"is of another run: files.labels is .*valid\.ltr, \d+ bytes, written", errors)


def test_another_version_or_other_kernels_are_another_run(
    labelled, outcome, model_path, monkeypatch
):
    there = run.versions(run.ENGINE_PACKAGES)
    assert {"fairseq_speedup", "torch"} <= set(there)
    for changed, words in (
        ({**there, "torch": "1.0"}, "torch is .* there and 1.0 now"),
        ({k: v for k, v in there.items() if k != "torch"}, "torch is .* there and not given now"),
    ):
        monkeypatch.setattr(run, "versions", lambda _, changed=changed: changed)
        assert re.search(words, refused_again(labelled, outcome, model_path))
    monkeypatch.undo()
    monkeypatch.setattr(run.kernels, "how", lambda: "by hand")
    assert "there and by hand now" in refused_again(labelled, outcome, model_path)


def test_data_of_another_dictionary_are_refused(labelled, model_path, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(labelled, other)
    dictionary = other / "dict.ltr.txt"
    dictionary.write_text("".join(dictionary.read_text().splitlines(keepends=True)[:-1]))
    _, errors = optimize(
        *(model_path, "--data", other, "--wer-budget", 30, "--output", tmp_path / "x"), status=1
    )
    assert re.search(r"dictionary in .*other has \d+ symbols and is not the checkpoint's", errors)


def test_without_labels_the_measure_is_the_distance_from_its_own_text(corpus, model_path, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_text("no audio")
    printed, said = optimize(
        *(model_path, "--audio", corpus / "audio", broken),
        *("--output", tmp_path / "faster", "--json"),
        *("--wer-budget", 100, "--max-utterances", 6, "--time-limit", "0.001s"),
    )
    found = json.loads(printed)
    assert found["measure"] == "distance" and found["lines"][0]["error_rate"] == 0
    assert found["num_utterances"] == 6 and found["training"] == []
    (command,) = map(shlex.split, found["commands"])
    assert "transcribe" in command
    assert said.startswith("measuring the model as it is ...\n")
    assert "the time limit was reached, candidates tried: 1;" in said


def test_audio_that_is_left_out_is_told_by_one_of_the_processes(corpus, tmp_path, capsys):
    good = next(map(str, sorted((corpus / "audio").rglob("*.wav"))))
    task = SimpleNamespace(cfg=SimpleNamespace(sample_rate=16000, normalize=True))
    for tells in (True, False):
        found = Recordings(task, [good, str(tmp_path / "lost.wav")], 400, tells)
        assert found.paths == [good]
        assert capsys.readouterr().err.count("lost.wav") == tells


def test_options_of_decoding_are_those_of_one_candidate(tmp_path, monkeypatch):
    given = []

    class Task:
        def __init__(self):
            self.cfg = SimpleNamespace(inference="auto", blank_skip_threshold=1.0)

        def build_generator(self, models, generation):
            given.append((self.cfg.inference, self.cfg.blank_skip_threshold, generation.beam))

    worker = Worker.__new__(Worker)
    worker.setup = SimpleNamespace(folder=str(tmp_path), decoding={"ctc_decoder": "beam"})
    worker.task, worker.kept_of, worker.use_cuda = Task(), None, False
    base = Candidate(engine="onnx", decoding={"beam": 50})
    Path(exported_path(worker.setup.folder, base)).touch()
    monkeypatch.setattr("fairseq_speedup.export.engines.open_exported", lambda *unused: None)
    monkeypatch.setattr("fairseq_speedup.models.exported_ctc.ExportedCtc", lambda session: None)
    for options in ({"blank_skip_threshold": 0.95}, {"beam": 25}):
        worker.load(base.with_decoding(**options))
    assert given == [("none", 0.95, 50), ("none", 1.0, 25)]
    assert worker.task.cfg == Task().cfg


# -- smaller checkpoints -------------------------------------------------------------------------


@pytest.fixture
def setup(corpus, tmp_path, monkeypatch):
    """Of a model whose layers have low ranks, where little is asked of them."""
    monkeypatch.setattr(made, "ENERGIES", ((0.5, 0.5), (0.4, 0.4)))
    pretrained = write_pretrained(tmp_path / "wide.pt", encoder_layers=3, encoder_embed_dim=64)
    dictionary = Dictionary.load(str(corpus / "dict.ltr.txt"))
    path = write_finetuned(tmp_path / "whole.pt", pretrained, dictionary)
    folder = tmp_path / "work"
    folder.mkdir()
    return Setup(
        *(str(path), str(corpus), "test", [], {"padding": "stock"}, {}, "letter", str(folder)),
        cpu=True,
    )


def test_a_smaller_checkpoint_is_made_and_carried(setup, corpus, tmp_path):
    candidate = Candidate(
        {"keep_layers": "0,2", "merge_ratio": 0.1}, "fp32", pruned=0.8, low_rank=[0.5, 0.5]
    )
    path = Path(checkpoint_of(setup, candidate))
    files = {each.name: each.stat().st_mtime_ns for each in path.parent.glob("*.pt")}
    assert len(files) == 3 + 2  # all targets, and all ranks of one of them
    assert checkpoint_of(setup, candidate) == str(path)
    assert {each.name: each.stat().st_mtime_ns for each in path.parent.glob("*.pt")} == files

    written.write_model(setup, candidate, tmp_path)
    model, _, _ = load_finetuned(str(tmp_path / "model.pt"), "")
    assert model.cfg.merge_ratio == 0.1 and model.cfg.inference_form == "fp32"
    assert model.cfg.padding == "stock" and model.w2v_encoder.kept_layers == [0, 1]
    variant = model.cfg.w2v_args.encoder_variant
    assert 0.79 <= variant.pruned.share <= 0.8 and 0 < variant.low_rank.share < 1
    whole, _, _ = load_finetuned(setup.path, "", {"keep_layers": "0,2"})
    pruned, _, _ = load_finetuned(checkpoint_of(setup, replace(candidate, low_rank=[])), "")
    counts = [MacCounter(each).count([160000]).sum().total for each in (pruned, whole)]
    assert 0.79 <= counts[0] / counts[1] <= 0.8


def test_a_smaller_checkpoint_is_exported(setup):
    pytest.importorskip("onnxruntime")
    from fairseq_speedup.export.session import OnnxModel

    candidate = Candidate({"keep_layers": "0,2"}, engine="onnx", pruned=0.8)
    export(setup, candidate)
    file = OnnxModel(exported_path(setup.folder, candidate))
    assert file.metadata.model == "whole.pt"
    source = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    found = torch.as_tensor(file.log_probs(source.numpy())[0])
    model, _, _ = load_finetuned(checkpoint_of(setup, candidate), "")
    with torch.no_grad():
        logits = model.eval()(source=source, padding_mask=None)["encoder_out"]
    expected = torch.log_softmax(logits, dim=-1).transpose(0, 1)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_what_was_made_before_a_break_is_made_again_alike(setup):
    candidate = Candidate(pruned=0.9)
    path = Path(checkpoint_of(setup, candidate))
    before = torch.load(path, weights_only=False)["model"]
    for each in path.parent.iterdir():
        each.unlink()
    after = torch.load(checkpoint_of(setup, candidate), weights_only=False)["model"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_made_is_said_and_looked_for_once(setup, monkeypatch):
    monkeypatch.setattr(made, "ENERGIES", ((1.0, 1.0),))
    for energies in ([1.0, 1.0], [0.99, 0.99]):
        with pytest.raises(ValueError, match="no linear layer has so low a rank"):
            checkpoint_of(setup, Candidate(low_rank=energies))
        monkeypatch.setattr(made, "_opened", lambda *unused: 1 / 0)


def test_directions_are_found_once_for_all_ranks(setup, monkeypatch):
    decomposed, eigh = [], torch.linalg.eigh

    def counted(matrix):
        decomposed.append(matrix)
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    for energies in made.ENERGIES:
        checkpoint_of(setup, Candidate(low_rank=list(energies)))
    assert len(decomposed) == 3 * 6  # linear layers


def test_only_ranks_that_are_not_low_are_passed_over(setup, monkeypatch):
    def damaged(*unused):
        raise CheckpointError("the disk is damaged")

    monkeypatch.setattr(made, "low_rank_state", damaged)
    with pytest.raises(CheckpointError, match="the disk is damaged"):
        checkpoint_of(setup, Candidate(low_rank=list(made.ENERGIES[0])))


# -- what cannot be ------------------------------------------------------------------------------


def refused(capsys, *arguments) -> str:
    assert main(["optimize", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_a_model_that_is_wrong_for_the_data_is_named(corpus, model_path, tmp_path, capsys):
    said = refused(capsys, model_path, "--data", corpus, "--output", tmp_path / "x", "--cpu")
    assert "% errors: a budget means nothing there" in said and "dictionary" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--wer-budget", "-1"], "--wer-budget -1.0 is out of range"),
        (["--wer-budget", "inf"], "--wer-budget inf is out of range"),
        (["--audio", "lost.wav"], "give either --data"),
        (["--gen-subset", "lost"], "manifest"),
        (["--model-overrides", "2"], "no Python dict"),
        (["--kenlm-model", "lm.arpa"], "--ctc-decoder beam"),
    ],
)
def test_bad_arguments_are_named(options, words, corpus, model_path, tmp_path, capsys):
    given = [model_path, "--data", corpus, "--output", tmp_path / "x", *options]
    assert words in refused(capsys, *given)
    assert not (tmp_path / "x" / "model.pt").exists()


def test_a_folder_of_somebody_else_is_left_alone(corpus, model_path, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    said = refused(capsys, model_path, "--data", corpus, "--output", tmp_path)
    assert "no run of optimize has made it" in said
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_time_limit_is_a_time(capsys, corpus, model_path, tmp_path):
    given = [model_path, "--data", corpus, "--output", tmp_path / "x", "--time-limit", "soon"]
    with pytest.raises(SystemExit):
        main(["optimize", *map(str, given)])
    assert "--time-limit" in capsys.readouterr().err


# -- what training would add ---------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--beam-threshold", "20", "--sil-score", "-0.5"]])
def test_commands_take_the_options_of_a_beam_search_as_they_were_given(more, setup):
    given = ["--ctc-decoder", "beam", "--beam", "20", "--lm-weight", "2", "--word-score", "-1"]
    given += ["--kenlm-model", "lm.arpa", "--lexicon", "words.txt", *more]
    parse = build_parser().parse_args
    args = parse(["optimize", "a.pt", "--audio", "a.wav", "--output", "faster", *given])
    args.decoding = decoding_of(args)
    setup = replace(setup, decoding=args.decoding)
    decoding = ["--path", "a.pt", *options_of(args, setup, Candidate())]
    again = parse(["transcribe", "a.wav", *decoding])
    assert [getattr(again, name) for name in BEAM] == [getattr(args, name) for name in BEAM]
    again = parse_generation("data", "--task", "speedup_finetuning", *decoding)
    assert [getattr(again, name) for name in BEAM] == [getattr(args, name) for name in BEAM]


CONFIGS = REPO / "config/finetuning"


def words_of(suggestion, folder, normalize, hours, has_gpu):
    """Of the command that trains so."""
    recipe = Recipe(
        "best.pt", str(folder), "valid", str(CONFIGS), "plugin", normalize, hours, has_gpu
    )
    return shlex.split(recipe.command(suggestion))


def test_training_commands_fit_the_model_and_the_amount_of_data(tmp_path):
    few = suggestions(SUBJECT, {}, hours=1)
    many = suggestions(SUBJECT, {}, hours=100)
    assert few[0].options == ("model.frame_pool=2",)
    assert few[1].options == many[1].options == ("model.frontend=fbank", "model.frame_pool=2")
    assert few[2].options == many[2].options == (*few[1].options, "model.keep_layers=4")
    assert "prune checkpoints/checkpoint_last.pt" in few[3].then
    whole = replace(SUBJECT, can_prune=False)
    assert suggestions(whole, {}, hours=1)[3].options == ("model.keep_layers=4",)
    assert few[3].options[0] == many[0].options[0] == "model.prune_target=0.5"
    assert many[3].options == ("model.downsample=conv", "model.downsample_factor=2")
    fbank = suggestions(SUBJECT, {"frontend": "fbank"}, hours=1)
    assert [each.options[0] for each in fbank].count("model.frame_pool=2") == 2
    assert all("model.frontend=fbank" not in each.options for each in fbank)
    pooled = suggestions(SUBJECT, {"frame_pool": 2}, hours=1)
    assert all("model.frontend=fbank" not in each.options for each in pooled)
    halved = suggestions(SUBJECT, {"downsample": "conv"}, hours=100)
    assert all("downsample" not in each.options[0] for each in halved)
    pooled = suggestions(SUBJECT, {"frame_pool": 2}, hours=1)
    assert all("model.frame_pool=2" not in each.options for each in pooled)
    words = words_of(few[0], tmp_path, normalize=True, hours=3, has_gpu=False)
    assert words[words.index("--config-name") + 1] == "faster"
    assert {"task.normalize=true", "optimization.max_update=1080"} < set(words)
    assert {"common.cpu=true", "common.fp16=false"} < set(words)
    words = words_of(few[2], tmp_path, normalize=True, hours=3, has_gpu=False)
    assert {"model.frontend_match_updates=540", "optimization.max_update=2160"} < set(words)
    words = words_of(few[0], tmp_path, normalize=False, hours=100, has_gpu=True)
    assert not any(
        each.startswith(("task.normalize", "optimization", "common.cpu")) for each in words
    )


def test_what_a_model_has_already_is_not_suggested_again():
    taken = {"frontend": "fbank", "frame_pool": 2, "keep_layers": "4", "downsample": "conv"}
    for each in SUGGESTIONS:
        free = [name for name in each.changed if can_change(name, SUBJECT, {})]
        assert free == each.changed
        for name in set(each.changed) & taken.keys():
            assert not can_change(name, SUBJECT, {name: taken[name]})
    with_exits = replace(SUBJECT, exits=[3, 5])
    short = replace(SUBJECT, kept_layers=[0, 1])
    for subject in (with_exits, short):
        for hours in (1, 100):
            found = suggestions(subject, {}, hours)
            assert found and all("keep_layers" not in each.changed for each in found)


def test_training_commands_are_of_the_config_that_is_there(tmp_path):
    for suggestion in suggestions(SUBJECT, {}, hours=1):
        words = words_of(suggestion, tmp_path, normalize=True, hours=100, has_gpu=True)
        overrides = words[words.index("--config-name") + 2 :]
        with initialize_config_dir(str(CONFIGS), version_base="1.1"):
            cfg = compose("faster", overrides=overrides)
        assert cfg.criterion._name == "ctc_distillation"  # whose teacher is what it starts from
        assert cfg.model.w2v_path == str(Path("best.pt").absolute())
        assert switched_on(cfg.model)
        twice = cfg.model.frontend == "fbank"
        assert cfg.optimization.max_update == UPDATES * (1 + twice)
        assert cfg.model.frontend_match_updates == (UPDATES // 2 if twice else 0)
        assert cfg.dataset.max_tokens == SECONDS * SAMPLE_RATE_HZ


def test_candidates_are_compared_by_what_their_transcripts_depend_on():
    base = Candidate()
    assert replace(base, batch_size=4).transcripts_key == base.transcripts_key
    assert replace(base, form="fp32").transcripts_key != base.transcripts_key
    assert base.with_decoding(beam=5).macs_key == base.macs_key
    described = base.with_overrides(merge_ratio=0.1).described(base)
    assert described == "merge_ratio=0.1" and base.described(base) == "as it is"
    assert np.isinf(Measured(base).time) and torch.get_num_threads() == 1
