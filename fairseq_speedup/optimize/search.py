"""Combines candidates under a budget: greedily, and each combination measured, never added up."""

import time
from collections.abc import Iterator
from dataclasses import replace

from fairseq_speedup.optimize import candidates
from fairseq_speedup.optimize.bench import Bench, Measured
from fairseq_speedup.optimize.candidates import ENGINES, REVERTED, Candidate

FASTER = 0.98  # of the time before: less is within the noise
WORTH = 0.95  # the same, of what loses more: words are not spent for less
LEAST_INFLUENTIAL = 2  # layers of which each is tried to be left out, at each step


class Search:
    """
    Args:
        bench: measures
        num_cores: of the CPU
        deadline: of ``time.monotonic``, after which nothing new is measured
        progress: called before and after each measurement
    """

    def __init__(self, bench: Bench, num_cores: int, deadline: float, progress):
        self.bench = bench
        self.num_cores = num_cores
        self.deadline = deadline
        self.progress = progress
        self.out_of_time = False

    def run(self, budgets: list[float]) -> None:
        """Leaves in the bench what was measured on the way to the fastest model under each of the
        budgets, in points of WER."""
        for budget in budgets:
            self._under(budget)

    def _under(self, budget: float) -> Measured:
        best = self.bench.measured[self.bench.base.key]
        for step in (
            self._forms,
            self._engines_as_it_is,
            self._speeds,
            self._layers,
            self._cuts,
            self._pruning,
            self._low_ranks,
            self._exits,
            self._merging,
            self._engines,
            self._decoders,
            self._schedules,
        ):
            best = step(best, budget)
        return best

    # -- steps: each goes on from the best so far, and returns it or a faster one ----------------

    def _forms(self, best: Measured, budget: float) -> Measured:
        return self._fastest(best, candidates.forms(best.candidate, self.subject), budget)

    def _engines_as_it_is(self, best, _):
        """They come once more, with what is made smaller by then. What they make of the model as it
        is costs no words and is often the most, so a short --time-limit has it."""
        for each in candidates.engines(self.bench.base, self.subject):
            self._measure(each)
        return best

    def _speeds(self, best, budget):
        """Each option is a ladder of its own, from where the one before has led."""
        for name, values in self.subject.many.items():
            one = replace(self.subject, many={name: values})
            best = self._ladder(best, candidates.speeds(best.candidate, one), budget)
        return best

    def _layers(self, best, budget):
        """Leaves out one layer after another while the budget holds."""
        influence = {} if self.out_of_time else self.bench.influence_of_layers()
        while influence and not self.out_of_time:
            options = candidates.without_a_layer(
                best.candidate, self.subject, influence, LEAST_INFLUENTIAL
            )
            tried = [self._measure(each) for each in options]
            found = [each for each in tried if each is not None]
            least = min(found, key=lambda each: (each.loss, each.time), default=None)
            better = self._better(best, [least], budget)
            if better is best:
                break
            best = better
        return best

    def _cuts(self, best, budget):
        return self._ladder(best, candidates.cut_at_exits(best.candidate, self.subject), budget)

    def _pruning(self, best, budget):
        return self._ladder(best, candidates.pruning(best.candidate, self.subject), budget)

    def _low_ranks(self, best, budget):
        return self._ladder(best, candidates.low_ranks(best.candidate, self.subject), budget)

    def _exits(self, best, budget):
        return self._ladder(best, candidates.early_exits(best.candidate, self.subject), budget)

    def _merging(self, best, budget):
        return self._ladder(best, candidates.merging(best.candidate, self.subject), budget)

    def _engines(self, best, budget):
        """In int8 with parts in fp32 only where it loses too much without."""
        options = candidates.engines(best.candidate, self.subject)
        lost = [self._measure(each) for each in options if each.engine == REVERTED]
        if any(each is not None and budget < each.loss < float("inf") for each in lost):
            options += candidates.reverted(best.candidate, self.subject, budget)
        return self._fastest(best, options, budget)

    def _decoders(self, best, budget):
        for each in candidates.decoders(best.candidate, self.subject):
            best = self._fastest(best, [best.candidate.with_decoding(**each.decoding)], budget)
        return best

    def _schedules(self, best, budget):
        options = candidates.schedules(best.candidate, self.subject, self.num_cores)
        return self._fastest(best, options, budget)

    # -- how they choose -------------------------------------------------------------------------

    @property
    def subject(self) -> candidates.Subject:
        return self.bench.subject

    def _fastest(self, best: Measured, options: list[Candidate], budget: float) -> Measured:
        """The fastest of all that keep the budget."""
        return self._better(best, (self._measure(each) for each in options), budget)

    def _ladder(self, best: Measured, options: list[Candidate], budget: float) -> Measured:
        """Likewise, of ever stronger ones: ends with the first that does not keep it; those that
        cannot be run are passed over."""
        return self._better(best, self._until_lost(options, budget), budget)

    def _until_lost(self, options, budget: float) -> Iterator[Measured | None]:
        for each in options:
            found = self._measure(each)
            yield found
            if found is None or (found.loss > budget and not found.failed):
                return

    @staticmethod
    def _better(best: Measured, found, budget: float) -> Measured:
        for each in found:
            if each is None or each.loss > budget:
                continue
            if each.time < (FASTER if each.loss <= best.loss else WORTH) * best.time:
                best = each
        return best

    def _measure(self, candidate: Candidate) -> Measured | None:
        """None where the time is over; one candidate is always tried."""
        is_new, has_some = not self.bench.is_measured(candidate), len(self.bench.measured) > 1
        if is_new and has_some and time.monotonic() > self.deadline:
            self.out_of_time = True
            return None
        self.progress.begin(candidate)
        found = self.bench.measure(candidate)
        self.progress.end(found)
        return found


def fastest(bench: Bench, budget: float, engines=ENGINES) -> Measured:
    """Of all that was measured in these engines, the fastest that loses at most so much; of those
    that are about as fast, the one that loses least."""
    good = [
        each
        for each in bench.measured.values()
        if each.loss <= budget and each.candidate.engine in engines
    ]
    time = min(each.time for each in good)
    as_fast = [each for each in good if WORTH * each.time <= time]
    return min(as_fast, key=lambda each: (each.loss, each.time))


def front(bench: Bench) -> list[Measured]:
    """The Pareto front of time and loss, fastest first."""
    found: list[Measured] = []
    for each in sorted(bench.measured.values(), key=lambda each: (each.time, each.loss)):
        if each.ratios and (not found or each.loss < found[-1].loss):
            found.append(each)
    return found
