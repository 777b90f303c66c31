"""Measures candidates beside the model as it is, and keeps what it measured in a file."""

import json
import math
import multiprocessing
import os
import time
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from fairseq_speedup.console.earlier_run import first_difference
from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.optimize.candidates import Candidate
from fairseq_speedup.optimize.setup import Setup
from fairseq_speedup.optimize.worker import Transcribed, batches_of, serve

PRELOADED = ["fairseq_speedup.optimize.worker", "fvcore.nn", "fairseq_cli.generate"]
ROUNDS = 5
FEWEST_ROUNDS, BEHIND = 2, 1.15  # what takes so much longer than another in those is timed no more
SECONDS_OF_ROUND = 2.0  # that the model as it is takes
FEWEST_TIMED, MOST_TIMED = 4, 24  # utterances
MOST_LOSS = 2  # budgets: a candidate that loses more is not timed


class WorkerDiedError(ValueError):
    """A worker was ended, for instance for want of memory."""


class OtherRunError(ValueError):
    """A log is of another model, other data or another machine."""


@dataclass
class Measured:
    """A candidate and what was found.

    errors: of each utterance, edit distance in words
    loss: points of WER more than the model as it is
    ratios: of its time and that of the model as it is, of each round; empty where it was not timed
    macs_per_second: of audio, None where they are not known
    memory_bytes: most, None where it is not known
    layers: mean number run, where utterances leave
    failed: why it could not be run
    """

    candidate: Candidate
    errors: list[int] = field(default_factory=list)
    loss: float = float("inf")
    ratios: list[float] = field(default_factory=list)
    macs_per_second: float | None = None
    memory_bytes: int | None = None
    layers: float | None = None
    failed: str = ""

    @property
    def time(self) -> float:
        """As a fraction of that of the model as it is; infinite where it was not timed."""
        return median(self.ratios) if self.ratios else float("inf")


class Process:
    """A worker's process; it is started when it is first asked for something.

    Args:
        tells: whether it says what audio is left out, the first time
    """

    def __init__(self, setup: Setup, user_dir: str | None, tells: bool = True):
        self.setup, self.user_dir, self.tells = setup, user_dir, tells
        self.process: Any = None
        self.connection: Any = None
        self.candidate: Candidate | None = None

    def call(self, method: str, *arguments):
        """What the worker's method gives.

        Raises:
            ValueError: its words
            WorkerDiedError
        """
        if self.process is None:
            context = self._context()
            self.connection, theirs = context.Pipe()
            given = (theirs, self.setup, self.user_dir, self.tells)
            self.process = context.Process(target=serve, args=given, daemon=True)
            self.process.start()
            self.tells = False
            theirs.close()
        try:
            self.connection.send((method, arguments))
            good, found = self.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            status = self.process.exitcode
            self.process = self.candidate = None
            raise WorkerDiedError(f"the process was ended (status {status})") from None
        if not good:
            raise ValueError(found)
        return found

    def _context(self):
        """That starts a process: on a CPU it is forked by a server that has imported what a worker
        needs; CUDA is not for a forked one."""
        if self.setup.device.type == "cuda":
            return multiprocessing.get_context("spawn")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        return context

    def load(self, candidate: Candidate) -> None:
        """Makes a candidate ready, if it is not."""
        if self.candidate == candidate:
            return
        if self.candidate is not None and self.candidate.engine != candidate.engine:
            self.close()  # what an engine has allocated is not given back
        self.candidate = None
        if candidate.is_made and self.call("make", candidate):
            self.close()  # what making it has allocated is not given back
        self.call("load", candidate)
        self.candidate = candidate

    def close(self) -> None:
        if self.process is not None:
            self.connection.close()
            self.process.join(5)
            self.process.terminate()
            self.process = self.candidate = None


class Bench:
    """
    Args:
        setup: what every candidate has in common
        base: the model as it is
        log: file that keeps what was measured, for a run that goes on
        origin: what a log must be of to be gone on with
        budget: points of WER
        scoring: how errors are counted
        user_dir: package with the user's own reductions
        most_utterances: of the data, evenly over their lengths; None for all
        time_limit: seconds, of which the model as it is takes not much more than a third

    Attributes:
        indices: utterances that are transcribed
        timed: those that are timed
        num_words: of each utterance's reference
        by_labels: whether references are labels, not the model's own transcripts
        noise: times of the model as it is, as fractions of its own in the other process
        deadline: of ``time.monotonic``, infinite for none
    """

    def __init__(
        self,
        setup: Setup,
        base: Candidate,
        log: str,
        origin: dict,
        budget: float,
        scoring: Scoring,
        user_dir: str | None = None,
        most_utterances: int | None = None,
        time_limit: float = math.inf,
    ):
        now = time.monotonic()
        self.deadline, self.deadline_of_base = now + time_limit, now + time_limit / 3
        self.setup, self.base, self.budget, self.scoring = setup, base, budget, scoring
        self.ours, self.other = Process(setup, user_dir), Process(setup, user_dir, tells=False)
        self.log = log
        self.measured: dict[str, Measured] = {}
        self.influence: dict[int, float] = {}
        self.influence_failed = False
        self.transcribed: dict[str, Transcribed] = {}
        self.macs: dict[str, float | None] = {}
        self.noise: list[float] = []
        self._read_log(origin)
        self.num_samples, references = self.ours.call("data_found")
        self.subject = self.ours.call("subject")
        self.indices = spread(self.num_samples, most_utterances or len(self.num_samples))
        self.by_labels = references is not None
        self._begin(references)

    def close(self) -> None:
        self.ours.close()
        self.other.close()

    # -- the model as it is ----------------------------------------------------------------------

    def _begin(self, references) -> None:
        self.ours.load(self.base)
        start = time.monotonic()
        found = self.ours.call("transcribe", self.indices, self.subject.padding_gets_in)
        seconds = time.monotonic() - start
        self.transcribed[self.base.transcripts_key] = found
        texts = dict(zip(self.indices, found.texts, strict=True))
        self.references = references or [texts.get(i, "") for i in range(len(self.num_samples))]
        _, self.num_words = self._errors(found.texts)
        self._choose_timed(seconds / max(1, self._samples(self.indices)))
        self.measure(self.base)

    def _choose_timed(self, seconds_per_sample: float) -> None:
        """As many utterances as a round's time allows."""
        count = MOST_TIMED
        self.timed = spread(self.num_samples, count, self.indices)
        while count > FEWEST_TIMED and (
            seconds_per_sample * self._samples(self.timed) > SECONDS_OF_ROUND
        ):
            count -= 1
            self.timed = spread(self.num_samples, count, self.indices)

    def _samples(self, indices: list[int]) -> int:
        return sum(self.num_samples[index] for index in indices)

    def _errors(self, texts: list[str]) -> tuple[list[int], list[int]]:
        pairs = [
            (self.references[index], text) for index, text in zip(self.indices, texts, strict=True)
        ]
        return self.scoring.counts(pairs)

    def error_rate(self, measured: Measured) -> float:
        """In percent."""
        return 100 * sum(measured.errors) / max(1, sum(self.num_words))

    # -- candidates ------------------------------------------------------------------------------

    def measure(self, candidate: Candidate) -> Measured:
        """What is found of a candidate, measured once, and timed as soon as a budget allows it."""
        found = self.measured.get(candidate.key)
        if found is not None and self.is_measured(candidate):
            return found
        try:
            found = self._measure(candidate) if found is None else self._with_time(found)
        except ValueError as error:  # the worker's words, or that it was ended
            found = Measured(candidate, failed=str(error))
        self.measured[candidate.key] = found
        if candidate != self.base or not found.failed:  # which ends this run: the next tries again
            self._append(asdict(found))
        return found

    def is_measured(self, candidate: Candidate) -> bool:
        """Whether all is known of it: under a smaller budget it may have been too bad to time."""
        found = self.measured.get(candidate.key)
        if found is None:
            return False
        return bool(found.failed or found.ratios) or not self._is_timed(found.loss)

    def _is_timed(self, loss: float) -> bool:
        return loss <= MOST_LOSS * self.budget

    def _with_time(self, found: Measured) -> Measured:
        ratios, memory = self._timed(found.candidate, found.loss)
        return replace(found, ratios=ratios, memory_bytes=memory)

    def _measure(self, candidate: Candidate) -> Measured:
        transcribed = self.transcribed.get(candidate.transcripts_key)
        if transcribed is None:
            self.other.load(candidate)
            alone = self.subject.padding_gets_in
            transcribed = self.other.call("transcribe", self.indices, alone)
            self.transcribed[candidate.transcripts_key] = transcribed
        errors, _ = self._errors(transcribed.texts)
        macs = transcribed.macs_per_second or self.macs.get(candidate.macs_key)
        self.macs.setdefault(candidate.macs_key, macs)
        found = Measured(candidate, errors, macs_per_second=macs, layers=transcribed.layers)
        base = self.measured.get(self.base.key, found)
        found.loss = 100 * (sum(errors) - sum(base.errors)) / max(1, sum(self.num_words))
        if self._is_timed(found.loss):
            found = self._with_time(found)
        if candidate == self.base:
            self.noise, found.ratios = found.ratios, [1.0]
            self._append({"noise": self.noise})
        return found

    def _timed(self, candidate: Candidate, loss: float) -> tuple[list[float], int | None]:
        """Both in turns, batch by batch and in changing order, so that what else the machine does
        falls on both alike. What is behind from the first rounds on is not timed to the end, nor is
        what would go far beyond the time limit."""
        self.ours.load(self.base)
        self.other.load(candidate)
        batches = batches_of(self.timed, self.num_samples, candidate.batch_size)
        ratios = []
        deadline = self.deadline_of_base if candidate == self.base else self.deadline
        for number in range(ROUNDS + 1):
            seconds = {self.ours: 0.0, self.other: 0.0}
            for position, batch in enumerate(batches):
                turns = [self.ours, self.other]
                for each in turns if (number + position) % 2 else reversed(turns):
                    seconds[each] += each.call("seconds", batch)
            if number > 0:  # the first round warms up
                ratios.append(seconds[self.other] / seconds[self.ours])
            if len(ratios) == FEWEST_ROUNDS and self._is_behind(min(ratios), loss):
                break
            if len(ratios) >= FEWEST_ROUNDS and time.monotonic() > deadline:
                break
        return ratios, self.other.call("peak_memory")

    def _is_behind(self, ratio: float, loss: float) -> bool:
        """Whether what was measured before loses no more in far less time."""
        times = [each.time for each in self.measured.values() if each.loss <= loss]
        return ratio > BEHIND * min(times, default=math.inf)

    def influence_of_layers(self) -> dict[int, float]:
        """How much each layer changes what it is given, on the utterances that are timed; {} where
        that cannot be measured, of which it says why, once."""
        if not self.influence and not self.influence_failed:
            try:
                found = self.other.call("influence", self.timed)
            except ValueError as error:  # the worker's words, or that it was ended
                print(f"no layer is left out: what each does cannot be measured: {error}")
                self.influence_failed = True
                return {}
            self.influence = found
            self._append({"influence": {str(index): value for index, value in found.items()}})
        return self.influence

    # -- the log ---------------------------------------------------------------------------------

    def _read_log(self, origin: dict) -> None:
        self.origin = json.loads(json.dumps(origin, default=str))  # as it is read again
        if not os.path.exists(self.log):
            return
        with open(self.log, encoding="utf-8") as file:
            text = file.read()
        lines = []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break  # the last line of a run that was ended while it wrote
        if not lines and "\n" not in text:  # of one that was ended before it had any
            os.remove(self.log)
            return
        found = lines[0].get("origin") if lines else None
        if found != self.origin:
            raise OtherRunError(
                f"{self.log} is of another run: {first_difference(found or {}, self.origin)}; name "
                "another --output, or give --overwrite"
            )
        with open(self.log, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        for line in lines[1:]:
            if "noise" in line:
                self.noise = line["noise"]
            elif "influence" in line:
                self.influence = {int(k): value for k, value in line["influence"].items()}
            else:
                measured = Measured(**{**line, "candidate": Candidate(**line["candidate"])})
                self.measured[measured.candidate.key] = measured
                self.macs.setdefault(measured.candidate.macs_key, measured.macs_per_second)

    def _append(self, line: dict) -> None:
        """The file begins when there is something to keep."""
        first = [] if os.path.exists(self.log) else [{"origin": self.origin}]
        with open(self.log, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(each) + "\n" for each in [*first, line])


def spread(num_samples: list[int], count: int, among: list[int] | None = None) -> list[int]:
    """``count`` utterances at equal distances of the order of lengths, rising by index."""
    indices = range(len(num_samples)) if among is None else among
    ordered = sorted(indices, key=lambda index: num_samples[index])
    if count >= len(ordered):
        return sorted(ordered)
    places = (np.arange(count) + 0.5) / count * len(ordered)
    return sorted(ordered[int(place)] for place in places)
