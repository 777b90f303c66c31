"""Decoded runs in one table with significance, Pareto front and pictures."""

import re
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from fairseq_speedup.console import progress
from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.report import pictures
from fairseq_speedup.report.pareto import COSTS, front
from fairseq_speedup.report.runs import Row, RunsError, check_measures
from fairseq_speedup.report.saved import save
from fairseq_speedup.report.significance import RESAMPLES, difference
from fairseq_speedup.report.sources import read_all, timed, untimed
from fairseq_speedup.report.tables import Line, markdown, write_csv


def run(args) -> None:
    first = Path(args.runs[0])
    output = Path(args.output or (first.parent if first.is_file() else first / "report"))
    if not args.no_pictures:
        pictures.check_installed()
    names = read_names(args.rows) if args.rows else {}
    with progress.step("reading results"):
        all_rows = read_all(args.runs)
    _check_places(output, args.save)
    if args.times:
        all_rows = timed(all_rows, args.times)
    if args.no_times:
        all_rows = untimed(all_rows)
    rows = chosen(all_rows, names, args.rows) if args.rows else all_rows
    if args.baseline and not named(args.baseline, rows, "--baseline"):
        found = ", ".join(dict.fromkeys(row.name for row in rows))
        raise RunsError(f"--baseline {args.baseline} is no row; rows: {found}")
    scoring = check_measures((row.name, row.scoring) for row in all_rows)
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.test_set)]
    compared_groups = [compared(group, args.baseline) for group in groups]
    # nothing is written before all is computed
    output.mkdir(parents=True, exist_ok=True)
    if args.save:
        save(all_rows, args.save)
    text, drawn = [], []
    for group, lines in zip(groups, compared_groups, strict=True):
        table = markdown(lines, scoring.measure)
        text.append(f"## {group[0].test_set}\n\n{table}\n\n{_explained(lines, scoring)}")
        if not args.no_pictures:
            with progress.step("drawing"):
                of_group = _draw(group, output, scoring.measure)
            text += [f"![]({name})" for name in of_group]
            drawn += of_group
    all_lines = [line for lines in compared_groups for line in lines]
    (output / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    write_csv(all_lines, output / "report.csv", scoring.measure)
    print("\n\n".join(part for part in text if not part.startswith("![]")))
    written = [output / name for name in ("report.md", "report.csv", *drawn)]
    print(f"wrote {', '.join(map(str, written))}")
    if not drawn and not args.no_pictures:
        print("no picture: no row has MACs or a time")


def _check_places(output: Path, saved: str | None) -> None:
    """Raises RunsError where what is written cannot be."""
    places = [("--output", output, output.is_file(), "a file; give a folder")]
    if saved is not None:
        places.append(("--save", Path(saved), Path(saved).is_dir(), "a folder; give a file"))
    for option, path, is_other, words in places:
        if is_other:
            raise RunsError(f"{option} {path} is {words}")
        above = next(each for each in path.absolute().parents if each.exists())
        if not above.is_dir():
            raise RunsError(f"{option} {path}: {above} is not a folder")


def read_names(path: str) -> dict[str, str]:
    """What a file of --rows calls each row that it names. Blank lines, and those that begin with #,
    are left out.

    Raises:
        RunsError: no such file, no text, no rows, or two of one name or title
    """
    if not Path(path).is_file():
        raise RunsError(f"--rows {path} does not exist or is not a file")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunsError(
            f"--rows {path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    names: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, title = (part.strip() for part in line.partition("\t"))
        title = title or name
        if name in names:
            raise RunsError(f"--rows {path} names the row {name} twice")
        if title in names.values():
            raise RunsError(f"--rows {path} calls two rows {title}")
        names[name] = title
    if not names:
        raise RunsError(f"--rows {path} names no row: give a row's name on each line")
    return names


def named(name: str, rows: list[Row], option: str) -> list[Row]:
    """Rows of a name, one of each test set: of the whole name or, where a test set has no such row,
    of the one row below a folder of that name, as results without a seed are named ``full/test``,
    or of that name in an inference form, ``full, int8``.

    Raises:
        RunsError: there are several below it
    """
    found = []
    for test_set in dict.fromkeys(row.test_set for row in rows):
        of_set = [row for row in rows if row.test_set == test_set]
        here = [row for row in of_set if row.name == name]
        here = here or [row for row in of_set if row.name.startswith((f"{name}/", f"{name}, "))]
        if len(here) > 1:
            several = ", ".join(row.name for row in here)
            raise RunsError(f"{option} {name} may be any of {several}: give one of them")
        found += here
    return found


def chosen(rows: list[Row], names: dict[str, str], path: str) -> list[Row]:
    """Rows that the file ``path`` names, in its order, under the titles that it gives them.

    Raises:
        RunsError: a name that no row has
    """
    kept = []
    for name, title in names.items():
        found = named(name, rows, f"--rows {path}:")
        if not found:
            there = ", ".join(sorted({row.name for row in rows}))
            raise RunsError(
                f"--rows {path}: there is no row {name}; rows: {there}. A tab parts a name from "
                "what to call it"
            )
        kept += [replace(row, name=title) for row in found]
    return sorted(kept, key=lambda row: str(row.test_set))


def compared(rows: list[Row], baseline: str | None) -> list[Line]:
    """Rows of one test set with what they are beside the baseline, or beside the row with the most
    MACs where that is not among them.

    Raises:
        RunsError: a row was decoded on other data
    """
    found = named(baseline, rows, "--baseline") if baseline else []
    if baseline and not found:
        print(
            f"note: {rows[0].test_set} has no row {baseline}: its rows are compared with the one "
            "of the most MACs",
            file=sys.stderr,
        )
    base = found[0] if found else max(rows, key=lambda row: row.gmacs_per_second or 0)
    fronts = {cost: front(rows, cost) for cost in COSTS}
    lines = []
    for row in progress.bar(rows, f"comparing, {rows[0].test_set}", unit=" rows"):
        try:
            apart = None if row is base else difference(row, base)
        except ValueError as error:
            raise RunsError(f"{rows[0].test_set}: {error}") from None
        on = [cost for cost, best in fronts.items() if row in best]
        lines.append(Line(row, base, apart, on))
    return lines


def _explained(lines: list[Line], scoring: Scoring) -> str:
    row, base, measure = lines[0].row, lines[0].baseline, scoring.measure
    text = [
        f"{len(row.words)} utterances, {row.words.sum()} {scoring.unit}. {measure}: mean and "
        f"standard deviation over seeds. Difference: from {base.name}, points, with its 95 % "
        f"interval by {RESAMPLES} resamples of utterances (and seeds, where there are several).",
        f"Pareto: no other row has a better {measure} for as little.",
    ]
    if scoring.options:
        text.append(f"Scored with {scoring.options}.")
    timed = [line.row for line in lines if line.row.real_time_factor is not None]
    machines = {_hardware(each["hardware"]) for row in timed for each in row.computes}
    if len(machines) == 1:
        text.append(f"Real-time factors: {machines.pop()}.")
    elif machines:
        several = "; ".join(sorted(machines))
        text.append(f"Real-time factors cannot be compared, as they are of several: {several}.")
    of_one = [line.row.name for line in lines if len(line.row.seeds) == 1]
    if len(of_one) == len(lines):
        text.insert(1, "Each row is of one seed: what another would change is not in the interval.")
    elif of_one:
        lack = "Rows of one seed, whose intervals lack what another would change"
        text.insert(1, f"{lack}: {'; '.join(of_one)}.")
    return " ".join(text)


def _hardware(found) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


def _draw(rows: list[Row], output: Path, measure: str) -> list[str]:
    """Pictures of one test set; their names."""
    name = re.sub(r"[^\w.-]+", "_", str(rows[0].test_set))
    written = []
    for cost in COSTS:
        if any(COSTS[cost](row) is not None for row in rows):
            written.append(f"{name}_{measure.lower()}_vs_{cost.lower()}.png")
            pictures.draw_costs(rows, cost, output / written[-1], measure)
    if pictures.draw_amounts(rows, output / f"{name}_data.png", measure):
        written.append(f"{name}_data.png")
    if pictures.draw_exits(rows, output / f"{name}_exits.png"):
        written.append(f"{name}_exits.png")
    return written
