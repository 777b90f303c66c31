"""How optimize measures and chooses, with a made machine in the place of its worker processes."""

import json
from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.optimize import bench as benches
from fairseq_speedup.optimize.bench import (
    MOST_LOSS,
    ROUNDS,
    Bench,
    Measured,
    OtherRunError,
    WorkerDiedError,
)
from fairseq_speedup.optimize.candidates import Candidate, Subject, kept_of
from fairseq_speedup.optimize.outcome import Line, interval, words_needed
from fairseq_speedup.optimize.page import page_of
from fairseq_speedup.optimize.search import Search, fastest
from fairseq_speedup.optimize.worker import Transcribed

NUM_UTTERANCES, WORDS_EACH = 4, 250
NUM_WORDS = NUM_UTTERANCES * WORDS_EACH  # a word is a tenth of a point
SUBJECT = Subject(
    kept_layers=[0, 1],  # of which none is left out
    exits=[],
    can_merge=False,
    can_prune=False,
    many={},
    padding_gets_in=False,
    forms=[],
    engines=[],
    decoder="greedy",
    beam=1,
)
BASE = Candidate()
FP32 = replace(BASE, form="fp32")


class Machine:
    """Stands for what runs candidates.

    Args:
        wrong: how many words a candidate gets wrong
        seconds: that a candidate takes for a batch, by how often it had it before and by its turn:
            0 for the first of the two that are timed, then 1

    Attributes:
        done: what its processes were asked for, by method the candidates
    """

    def __init__(self, wrong=lambda candidate: 0, seconds=lambda *unused: 1.0, subject=SUBJECT):
        self.wrong, self.seconds, self.subject = wrong, seconds, subject
        self.done = {method: [] for method in ("transcribe", "seconds", "influence")}


class Process:
    """Stands for one of the machine's processes."""

    def __init__(self, machine):
        self.machine = machine
        self.candidate = None

    def load(self, candidate):
        self.candidate, self.had = candidate, Counter()

    def close(self): ...

    def call(self, method, *arguments):
        if method in self.machine.done:
            self.machine.done[method].append(self.candidate)
        return getattr(self, method)(*arguments)

    def data_found(self):
        words = " ".join(["WORD"] * WORDS_EACH)
        return [16000] * NUM_UTTERANCES, [words] * NUM_UTTERANCES

    def subject(self):
        return self.machine.subject

    def influence(self, indices):
        return {index: float(-index) for index in self.machine.subject.kept_layers}

    def transcribe(self, indices, alone):
        wrong = self.machine.wrong(self.candidate)
        words = ["NO"] * wrong + ["WORD"] * (NUM_WORDS - wrong)
        said = [words[index * WORDS_EACH : (index + 1) * WORDS_EACH] for index in indices]
        return Transcribed([" ".join(each) for each in said], None, None)

    def seconds(self, batch):
        self.had[tuple(batch)] += 1
        turn = (len(self.machine.done["seconds"]) - 1) % 2
        return self.machine.seconds(self.candidate, self.had[tuple(batch)] - 1, turn)

    def peak_memory(self):
        return 1


ORIGIN = {"data": "dev", "machine": {"cpu": "old", "gpu": None}, "threads": 1}


@pytest.fixture
def bench_of(tmp_path, monkeypatch):
    """``bench_of(machine)``: a bench of it, whose log is in tmp_path."""

    def make(machine, budget=1.0, origin=ORIGIN) -> Bench:
        monkeypatch.setattr(benches, "Process", lambda *unused, **options: Process(machine))
        log = str(tmp_path / "tried.jsonl")
        return Bench(None, BASE, log, origin, budget, Scoring(post_process="none"))

    return make


# -- what is measured ----------------------------------------------------------------------------


def test_transcripts_depend_on_all_but_batch_size_and_threads():
    changes = {
        "overrides": {"merge_ratio": 0.1},
        "form": "fp32",
        "engine": "openvino int8",
        "batch_size": 4,
        "threads": 2,
        "decoding": {"beam": 5},
        "int8_budget": 0.5,
        "pruned": 0.8,
        "low_rank": [0.99, 0.999],
    }
    assert changes.keys() == {each.name for each in fields(Candidate)}
    changed = {name: replace(BASE, **{name: value}) for name, value in changes.items()}
    same = {name for name, one in changed.items() if one.transcripts_key == BASE.transcripts_key}
    assert same == {"batch_size", "threads"}
    assert len({each.key for each in [BASE, *changed.values()]}) == 1 + len(changes)


def test_a_schedule_is_timed_without_being_transcribed_again(bench_of):
    machine = Machine()
    bench = bench_of(machine)
    batched, beam = replace(BASE, batch_size=4), BASE.with_decoding(beam=5)
    for each in (batched, beam):
        assert len(bench.measure(each).ratios) == ROUNDS
    assert machine.done["transcribe"] == [BASE, beam]
    assert batched in machine.done["seconds"]


def test_a_loss_is_what_is_wrong_beyond_the_model_as_it_is(bench_of):
    bench = bench_of(Machine(lambda candidate: 30 if candidate == BASE else 35))
    assert bench.measured[BASE.key].loss == 0
    assert bench.error_rate(bench.measured[BASE.key]) == 3
    found = bench.measure(FP32)
    assert found.errors == [35, 0, 0, 0] and found.loss == 0.5


@pytest.mark.parametrize("beyond, is_timed", [(0, True), (1, False)])
def test_what_loses_far_more_than_the_budget_is_not_timed(bench_of, beyond, is_timed):
    lost = 10 * MOST_LOSS + beyond  # words, of a budget of ten
    machine = Machine(lambda candidate: 0 if candidate == BASE else lost)
    found = bench_of(machine).measure(FP32)
    assert bool(found.ratios) == (FP32 in machine.done["seconds"]) == is_timed
    assert (found.time == 1) if is_timed else (found.time == float("inf"))


# -- how it is timed -----------------------------------------------------------------------------


def half(candidate) -> float:
    return 1.0 if candidate == BASE else 0.5


def test_the_first_round_warms_up_and_does_not_count(bench_of):
    def seconds(candidate, number, turn):
        return half(candidate) * (100 if number == 0 and candidate != BASE else 1)

    assert bench_of(Machine(seconds=seconds)).measure(FP32).ratios == [0.5] * ROUNDS


def test_what_slows_down_the_second_of_two_falls_on_both(bench_of):
    machine = Machine(seconds=lambda candidate, number, turn: half(candidate) * (1 + turn))
    bench = bench_of(machine)
    assert bench.measure(FP32).ratios == [0.5] * ROUNDS
    assert bench.noise == [1.0] * ROUNDS
    # of one batch, from round to round
    ratios = bench.measure(replace(FP32, batch_size=NUM_UTTERANCES)).ratios
    assert set(pairwise(ratios)) == {(0.25, 1.0), (1.0, 0.25)}


def test_one_odd_round_does_not_change_the_time(bench_of):
    rounds = [1.0, 0.25, 0.75, 0.5, 0.375, 9.0]

    def seconds(candidate, number, turn):
        return 1.0 if candidate == BASE else rounds[number]

    found = bench_of(Machine(seconds=seconds)).measure(FP32)
    assert found.ratios == rounds[1:]
    assert found.time == 0.5


# -- how it is chosen ----------------------------------------------------------------------------


class NoProgress:
    def begin(self, candidate): ...

    def end(self, measured): ...


def searched(bench, budget: float) -> list[Candidate]:
    """What was measured, in order."""
    Search(bench, num_cores=1, deadline=float("inf"), progress=NoProgress()).run([budget])
    return [each.candidate for each in bench.measured.values()]


@pytest.mark.parametrize(
    "time, more_wrong, goes_on",
    [
        (0.97, 0, True),
        (0.99, 0, False),  # within the noise
        (0.97, -1, True),
        (0.97, 1, False),  # words are not spent for so little
        (0.94, 1, True),
        (0.5, 10, True),  # the budget
        (0.5, 11, False),
    ],
)
def test_a_step_goes_on_from_what_is_worth_it(bench_of, time, more_wrong, goes_on):
    """From a form to merging, which changes nothing here."""
    machine = Machine(
        lambda candidate: 20 + more_wrong * (candidate.form == "fp32"),
        lambda candidate, *unused: time if candidate.form == "fp32" else 1.0,
        replace(SUBJECT, forms=["fp32"], can_merge=True),
    )
    asked = searched(bench_of(machine), budget=1.0)
    merged = {each.form for each in asked if "merge_ratio" in each.overrides}
    assert merged == {"fp32" if goes_on else "none"}


def test_a_ladder_goes_on_where_the_budget_is_just_kept(bench_of):
    wrong = {None: 0, 0.9: 5, 0.8: 5, 0.7: 6}
    machine = Machine(
        lambda candidate: wrong[candidate.pruned],
        lambda candidate, *unused: candidate.pruned or 1.0,
        replace(SUBJECT, can_prune=True),
    )
    bench = bench_of(machine)
    asked = searched(bench, budget=0.5)
    assert [each.pruned for each in asked if each.batch_size == 1] == [None, 0.9, 0.8, 0.7]
    assert fastest(bench, 0.5).candidate.pruned == 0.8


@pytest.mark.parametrize("lost, left_out", [({2: 1, 3: 2}, 2), ({2: 1, 3: 1}, 3)])
def test_of_layers_the_one_that_loses_least_is_left_out(bench_of, lost, left_out):
    """Though without layer 3 it is faster, which decides where both lose as much."""
    shares = {2: 0.25, 3: 0.5}  # of the time

    def total(values, candidate):
        kept = kept_of(candidate, machine.subject)
        return sum(value for layer, value in values.items() if layer not in kept)

    machine = Machine(
        lambda candidate: total(lost, candidate),
        lambda candidate, *unused: 1 - total(shares, candidate),
        replace(SUBJECT, kept_layers=[0, 1, 2, 3, 4]),
    )
    asked = [kept_of(each, machine.subject) for each in searched(bench_of(machine), 1.0)]
    assert [0, 1, 2, 4] in asked and [0, 1, 3, 4] in asked
    # the other of both is still there where layer 1 is tried
    assert ([0, 3, 4] in asked) == (left_out == 2) and ([0, 2, 4] in asked) == (left_out == 3)


def test_what_is_asked_for_in_an_engine_is_chosen_among_those_of_it():
    engines = {"torch": 0.8, "onnx": 0.5, "openvino": 0.3}
    found = [
        Measured(replace(BASE, engine=engine), loss=0.0, ratios=[time])
        for engine, time in engines.items()
    ]
    bench = SimpleNamespace(measured={each.candidate.key: each for each in found})
    assert fastest(bench, 1.0).candidate.engine == "openvino"
    for chosen in engines:
        assert fastest(bench, 1.0, engines=(chosen,)).candidate.engine == chosen
    assert fastest(bench, 1.0, engines=("torch", "onnx")).candidate.engine == "onnx"


# -- whether the data tell -----------------------------------------------------------------------


def test_half_the_budget_needs_four_times_the_words(bench_of):
    bench = bench_of(Machine(lambda candidate: 0 if candidate == BASE else 300), budget=100)
    best = bench.measure(FP32)
    found = interval(bench, best)
    told = (found.most - found.least) / 2  # a budget that this set just tells from chance
    assert told > 1
    for budget, needed in [
        (told / 2, 4),
        (told / 4, 16),
        (told, None),
        (2 * told, None),
        (0, None),
    ]:
        expected = None if needed is None else needed * NUM_WORDS
        assert words_needed(bench, best, budget) == expected
        lines = [Line("as it is", bench.measured[BASE.key]), Line("best", best)]
        page = page_of(bench, lines, best, budget, [], [], [])
        assert ("from chance" in page) == (needed is not None)
        if needed is not None:
            sentence = f"budget of {budget:g} points from chance: it would take about {expected} "
            assert sentence in page


# -- a run that goes on --------------------------------------------------------------------------

WRITTEN = [
    {"origin": ORIGIN},
    {"noise": [1.1, 0.9]},
    {"candidate": {}, "errors": [2, 0, 0, 0], "loss": 0.0, "ratios": [1.0]},
    {"candidate": {"form": "fp32"}, "errors": [3, 0, 0, 0], "loss": 0.1, "ratios": [0.5, 0.7]},
    {"influence": {"0": 0.3, "1": 0.1}},
    {"candidate": {"form": "int8"}, "failed": "not here"},
]
HALF = '{"candidate": {"form": "bf1'


def write_log(path, end="") -> str:
    text = "".join(json.dumps(each) + "\n" for each in WRITTEN) + end
    path.write_text(text)
    return text


def test_what_a_log_has_is_not_measured_again(bench_of, tmp_path):
    log = tmp_path / "tried.jsonl"
    text = write_log(log, end=HALF)
    machine = Machine(lambda candidate: 2)
    bench = bench_of(machine)
    assert bench.noise == [1.1, 0.9]
    assert bench.influence_of_layers() == {0: 0.3, 1: 0.1}
    found = bench.measure(FP32)
    assert (found.loss, found.errors, found.time) == (0.1, [3, 0, 0, 0], 0.6)
    assert bench.measure(replace(BASE, form="int8")).failed == "not here"
    # references may be its own transcripts: the model as it is runs once
    assert machine.done == {"transcribe": [BASE], "seconds": [], "influence": []}
    assert log.read_text() + HALF == text

    new = replace(BASE, form="bf16")
    assert bench.measure(new).loss == 0
    assert machine.done["transcribe"] == [BASE, new]
    assert log.read_text().startswith(text.removesuffix(HALF))
    machine = Machine(lambda candidate: 999)
    again = bench_of(machine)
    for each in bench.measured.values():
        assert again.measure(each.candidate) == each
    assert machine.done == {"transcribe": [BASE], "seconds": [], "influence": []}
    lines = map(json.loads, log.read_text().splitlines())
    kept = [Candidate(**line["candidate"]).key for line in lines if "candidate" in line]
    assert len(kept) == len(set(kept)) == 4


def test_two_runs_transcribe_every_candidate_once(bench_of, tmp_path):
    """The second of a larger budget, for which the search goes on further."""
    machine = Machine(
        lambda candidate: round(100 * candidate.overrides.get("merge_ratio", 0)),
        lambda candidate, *unused: 1 - candidate.overrides.get("merge_ratio", 0),
        replace(SUBJECT, can_merge=True),
    )
    first = searched(bench_of(machine, budget=0.2), 0.2)
    second = searched(bench_of(machine, budget=0.5), 0.5)
    assert second[: len(first)] == first and len(second) > len(first)
    lines = [json.loads(each) for each in (tmp_path / "tried.jsonl").read_text().splitlines()]
    kept = [each for each in lines if "candidate" in each]
    whole = [Candidate(**each["candidate"]) for each in kept if each["ratios"]]
    untimed = [Candidate(**each["candidate"]) for each in kept if not each["ratios"]]
    assert len(whole) == len({each.key for each in whole})
    assert {each.key for each in whole + untimed} == {each.key for each in second}
    assert {each.key for each in whole + first} == {each.key for each in second}
    done = Counter(each.key for each in machine.done["transcribe"])
    assert done.pop(BASE.key) == 2 and set(done.values()) == {1}


@pytest.mark.parametrize(
    "origin, words",
    [
        (ORIGIN | {"data": "test"}, "data is dev there and test now"),
        (ORIGIN | {"threads": 2}, "threads (OMP_NUM_THREADS) is 1 there and 2 now"),
        (ORIGIN | {"machine": {"cpu": "new", "gpu": None}}, "machine.cpu is old there and new now"),
        (ORIGIN | {"kernels": "new"}, "kernels is not given there and new now"),
        ({"data": "dev", "machine": ORIGIN["machine"]}, "threads (OMP_NUM_THREADS) is 1 there and"),
    ],
)
def test_a_log_of_something_else_is_refused_and_left(bench_of, tmp_path, origin, words):
    log = tmp_path / "tried.jsonl"
    text = write_log(log, end=HALF)
    with pytest.raises(OtherRunError) as refused:
        bench_of(Machine(), origin=origin)
    said = str(refused.value)
    assert said.startswith(f"{log} is of another run: {words}") and "; name another" in said
    assert log.read_text() == text


@pytest.mark.parametrize("budget", [0.5, 2])
def test_a_larger_budget_has_timed_what_the_smaller_one_had_no_use_for(bench_of, budget):
    machine = Machine(
        lambda candidate: 15 * (candidate.form == "fp32"),  # 1.5 points
        lambda candidate, *unused: 0.5 if candidate.form == "fp32" else 1.0,
        replace(SUBJECT, forms=["fp32"]),
    )
    bench = bench_of(machine, budget=0.5)
    assert bench.measure(FP32).time == float("inf") and bench.is_measured(FP32)
    again = bench_of(machine, budget=budget)
    assert again.is_measured(FP32) == (budget == 0.5)
    Search(again, 1, float("inf"), NoProgress()).run([budget])
    assert fastest(again, budget).candidate == (FP32 if budget == 2 else BASE)
    assert machine.done["transcribe"].count(FP32) == 1
    assert bench_of(machine, budget=budget).measured[FP32.key] == again.measured[FP32.key]


def test_a_model_that_failed_once_is_tried_again(bench_of):
    def broken(*unused):
        raise ValueError("out of memory just now")

    assert bench_of(Machine(seconds=broken)).measured[BASE.key].failed == "out of memory just now"
    assert bench_of(Machine()).measured[BASE.key].ratios == [1.0]


def test_without_what_layers_do_the_search_goes_on(bench_of, monkeypatch, capsys):
    def died(self, indices):
        raise WorkerDiedError("the process was ended (status -9)")

    monkeypatch.setattr(Process, "influence", died)
    subject = replace(SUBJECT, kept_layers=[0, 1, 2, 3], forms=["fp32"])
    machine = Machine(subject=subject, seconds=lambda each, *unused: 1 - 0.5 * (each == FP32))
    bench = bench_of(machine)
    Search(bench, 1, float("inf"), NoProgress()).run([0.5, 1])
    assert fastest(bench, 1).candidate == FP32
    assert machine.done["influence"] == [FP32]  # once
    words = "no layer is left out: what each does cannot be measured: the process was ended"
    assert words in capsys.readouterr().out


def test_an_origin_is_as_it_is_read_again(bench_of):
    origin = {**ORIGIN, "model_overrides": {"mask": (1, 2)}}
    assert bench_of(Machine(), origin=origin).measured.keys() == {BASE.key}
    machine = Machine()
    bench_of(machine, origin=origin)
    assert machine.done["seconds"] == []


def test_a_log_that_was_cut_off_in_its_first_line_is_none(bench_of, tmp_path):
    log = tmp_path / "tried.jsonl"
    for beginning in ('{"origin": {"da', ""):
        log.write_text(beginning)
        bench_of(Machine())
        assert json.loads(log.read_text().splitlines()[0]) == {"origin": ORIGIN}
    log.write_text("notes of my own\n")
    with pytest.raises(OtherRunError, match="data is not given there and dev now"):
        bench_of(Machine())
    assert log.read_text() == "notes of my own\n"
