"""One table of all runs, as Markdown and CSV."""

import csv
from dataclasses import dataclass
from pathlib import Path

from fairseq_speedup.report.runs import Row
from fairseq_speedup.report.significance import Difference


@dataclass
class Line:
    """A row of the table.

    difference: from the baseline's WER, None for the baseline itself
    pareto: which costs no other row of its test set beats at the same or a better WER
    """

    row: Row
    baseline: Row
    difference: Difference | None
    pareto: list[str]


COLUMNS = ["model", "seeds", "WER %", "difference", "p", "GMACs/s", "ratio", "RTF", "ratio"]
# columns that a table has where one of its rows has a value: the value, and its decimals
OPTIONAL = {
    "layers": (lambda row: row.mean_layers, 2),
    "encoder s": (lambda row: _if_searched(row, row.encoder_seconds), 2),
    "decoder s": (lambda row: _if_searched(row, row.decoder_seconds), 2),
    "searched %": (lambda row: row.percent_searched, 1),
    "training min": (lambda row: row.training_seconds and row.training_seconds / 60, 1),
    "labelled h": (lambda row: row.hours, 2),
}


def _if_searched(row: Row, seconds: float | None) -> float | None:
    """Greedy decoding takes no time to speak of."""
    return None if row.test_set.decoder == "greedy" else seconds


def markdown(lines: list[Line]) -> str:
    """The lines of one test set."""
    optional = [
        name for name, (value, _) in OPTIONAL.items() if any(value(each.row) for each in lines)
    ]
    head = [*COLUMNS, *optional, "Pareto"]
    rule = ["---", *["---:"] * (len(head) - 2), "---"]
    return "\n".join(
        f"| {' | '.join(cells)} |"
        for cells in [head, rule, *(_cells(line, optional) for line in lines)]
    )


def _cells(line: Line, optional: list[str]) -> list[str]:
    row, baseline, found = line.row, line.baseline, line.difference
    spread = "" if row.spread is None else f" ± {row.spread:.2f}"
    difference = p = ""
    if found is not None:
        difference = f"{found.points:+.2f} ({found.least:+.2f} to {found.most:+.2f})"
        p = f"{found.p:.3f}" if found.p >= 0.001 else "< 0.001"
    gmacs, full = row.gmacs_per_second, baseline.gmacs_per_second
    cells = [
        row.name,
        str(len(row.seeds)),
        f"{row.wer:.2f}{spread}",
        difference,
        p,
        "" if gmacs is None else f"{gmacs:.4f}",
        "" if gmacs is None or full is None else f"{gmacs / full:.2f}",
        f"{row.real_time_factor:.5f}",
        f"{row.real_time_factor / baseline.real_time_factor:.2f}",
    ]
    for name in optional:
        value_of, decimals = OPTIONAL[name]
        value = value_of(row)
        cells.append("" if value is None else f"{value:.{decimals}f}")
    return [*cells, ", ".join(line.pareto)]


def write_csv(lines: list[Line], path: Path) -> None:
    """All lines, of every test set, unrounded."""
    records = [_record(line) for line in lines]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _record(line: Line) -> dict:
    row, found = line.row, line.difference
    return {
        "model": row.name,
        "subset": row.test_set.subset,
        "decoder": row.test_set.decoder,
        "seeds": len(row.seeds),
        "wer": row.wer,
        "wer_std": row.spread,
        "wer_by_seed": " ".join(map(str, row.wers)),
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
