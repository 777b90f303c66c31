"""What a user sees while candidates are tried."""

import sys
import time

from fairseq_speedup.console import progress

FORMAT = "{desc}: {n_fmt} tried, {elapsed} {postfix}"


class Progress:
    """A line that is written over on a terminal; elsewhere a line for each candidate.

    Args:
        base: the model as it is
        budget: points of WER
        deadline: of ``time.monotonic``, infinite for none
    """

    def __init__(self, base, budget: float, deadline: float):
        self.base, self.budget, self.deadline = base, budget, deadline
        self.best = self.fastest = None
        self.seen: set[str] = set()
        self.bar = progress.bar(bar_format=FORMAT, delay=0)

    def begin(self, candidate) -> None:
        if candidate.key in self.seen:
            return
        self.bar.set_description_str(candidate.described(self.base)[:60])
        self._say_best()

    def end(self, measured) -> None:
        if measured.candidate.key in self.seen:
            return
        self.seen.add(measured.candidate.key)
        if measured.loss <= self.budget and (not self.best or measured.time < self.best.time):
            self.best = measured
        self.bar.update()
        self._say_best()
        if self.bar.disable:
            print(self._line(measured), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *unused) -> None:
        self.bar.close()

    def _say_best(self) -> None:
        said = []
        if self.best is not None:
            said.append(f"best so far {self.best.time:.2f} of the time at {self.best.loss:+.2f}")
        if self.deadline < float("inf"):
            left = max(0, self.deadline - time.monotonic())
            left_in_words = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            said.append(f"{left_in_words} left at most")
        self.bar.set_postfix_str("; ".join(said))

    def _line(self, measured) -> str:
        name = measured.candidate.described(self.base)
        if measured.failed:
            return f"{name}: could not be run: {measured.failed}"
        timed = f"{measured.time:.2f} of the time" if measured.ratios else "not timed"
        return f"{name}: {measured.loss:+.2f} points, {timed}"
