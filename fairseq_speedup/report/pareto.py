"""Which models are worth having: none is better in WER at the same cost or less."""

from fairseq_speedup.report.runs import Row

COSTS = {
    "MACs": lambda row: row.gmacs_per_second,
    "time": lambda row: row.real_time_factor,
}


def front(rows: list[Row], cost: str) -> list[Row]:
    """The Pareto front of rows of one test set, cheapest first."""
    of = COSTS[cost]
    found: list[Row] = []
    with_cost = [row for row in rows if of(row) is not None]
    for row in sorted(with_cost, key=lambda row: (of(row), row.wer)):
        if not found or row.wer < found[-1].wer:
            found.append(row)
    return found
