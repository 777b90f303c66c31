"""Which models are worth having: none is better in WER at the same cost or less."""

from fairseq_speedup.report.runs import Row

COSTS = {
    "MACs": lambda row: row.gmacs_per_second,
    "time": lambda row: row.real_time_factor,
}


def front(rows: list[Row], cost: str) -> list[Row]:
    """The Pareto front of rows of one test set, cheapest first. Rows that are equal in cost and WER
    are on it together."""
    of = COSTS[cost]
    found: list[Row] = []
    with_cost = [row for row in rows if of(row) is not None]
    for row in sorted(with_cost, key=lambda row: (of(row), row.wer)):
        last = found[-1] if found else None
        if last is None or row.wer < last.wer or (of(row), row.wer) == (of(last), last.wer):
            found.append(row)
    return found
