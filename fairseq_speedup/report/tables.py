"""One table of all runs, as Markdown and CSV."""

import csv
from dataclasses import dataclass
from pathlib import Path

from fairseq_speedup.report.runs import Row
from fairseq_speedup.report.significance import Difference


@dataclass
class Line:
    """A row of the table.

    difference: from the baseline's error rate, None for the baseline itself
    pareto: which costs no other row of its test set beats at the same or a better error
        rate
    """

    row: Row
    baseline: Row
    difference: Difference | None
    pareto: list[str]


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _ratio(value: float | None, baseline: float | None) -> str:
    return "" if value is None or baseline is None else f"{value / baseline:.2f}"


def _if_searched(row: Row, seconds: float | None) -> float | None:
    """Greedy decoding takes no time to speak of."""
    return None if row.test_set.decoder == "greedy" else seconds


def markdown(lines: list[Line], measure: str = "WER") -> str:
    """The lines of one test set, whose error rate is a ``measure``; columns that no row has a value
    for are left out."""

    def escaped(text: str) -> str:
        return text.replace("|", r"\|")

    cells = [_cells(line, measure) for line in lines]
    columns = [
        (name, [escaped(each[position][1]) for each in cells])
        for position, (name, _) in enumerate(cells[0])
        if any(each[position][1] for each in cells)
    ]
    rule = ["---" if name in ("model", "Pareto") else "---:" for name, _ in columns]
    rows = zip(*(values for _, values in columns), strict=True)
    head = [name for name, _ in columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def _cells(line: Line, measure: str) -> list[tuple[str, str]]:
    """(column, what stands in it)"""
    row, baseline, found = line.row, line.baseline, line.difference
    spread = "" if row.spread is None else f" ± {row.spread:.2f}"
    difference = p = ""
    if found is not None:
        difference = f"{found.points:+.2f} ({found.least:+.2f} to {found.most:+.2f})"
        p = f"{found.p:.3f}" if found.p >= 0.001 else "< 0.001"
    training = row.training_seconds
    return [
        ("model", row.name),
        ("seeds", str(len(row.seeds))),
        (f"{measure} %", f"{row.wer:.2f}{spread}"),
        ("difference", difference),
        ("p", p),
        ("GMACs/s", _number(row.gmacs_per_second, 4)),
        ("ratio", _ratio(row.gmacs_per_second, baseline.gmacs_per_second)),
        ("RTF", _number(row.real_time_factor, 5)),
        ("ratio", _ratio(row.real_time_factor, baseline.real_time_factor)),
        ("layers", _number(row.mean_layers, 2)),
        ("encoder s", _number(_if_searched(row, row.encoder_seconds), 2)),
        ("decoder s", _number(_if_searched(row, row.decoder_seconds), 2)),
        ("searched %", _number(row.percent_searched, 1)),
        ("training min", _number(training and training / 60, 1)),
        ("labelled h", _number(row.hours, 2)),
        ("Pareto", ", ".join(line.pareto)),
    ]


def write_csv(lines: list[Line], path: Path, measure: str = "WER") -> None:
    """All lines, of every test set, unrounded; the error rate's columns are named ``measure``."""
    records = [_record(line, measure.lower()) for line in lines]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _record(line: Line, measure: str) -> dict:
    row, found = line.row, line.difference
    return {
        "model": row.name,
        "subset": row.test_set.subset,
        "decoder": row.test_set.decoder,
        "seeds": len(row.seeds),
        measure: row.wer,
        f"{measure}_std": row.spread,
        f"{measure}_by_seed": " ".join(map(str, row.wers)),
        "baseline": line.baseline.name,
        "difference": found and found.points,
        "difference_least": found and found.least,
        "difference_most": found and found.most,
        "p": found and found.p,
        "gmacs_per_second": row.gmacs_per_second,
        "real_time_factor": row.real_time_factor,
        "encoder_seconds": row.encoder_seconds,
        "decoder_seconds": row.decoder_seconds,
        "percent_searched": row.percent_searched,
        "mean_layers_run": row.mean_layers,
        "training_seconds": row.training_seconds,
        "labelled_hours": row.hours,
        "pareto": " ".join(line.pareto),
    }
