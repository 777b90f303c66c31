"""Rows of several folders and files, as one comparison."""

import os
from collections import defaultdict
from dataclasses import replace

import numpy as np

from fairseq_speedup.report.runs import (
    TIMES,
    Row,
    RunsError,
    check_measures,
    in_order,
    read_runs,
)
from fairseq_speedup.report.saved import load

MOST_NAMED = 5  # rows, in a message


def read(path: str) -> list[Row]:
    """Rows of a folder of results, or of a file of ``report --save``."""
    return load(path) if os.path.isfile(path) else read_runs(path)


def read_all(paths: list[str]) -> list[Row]:
    """Rows of all paths: those of one name and test set are one, with the seeds of each.

    Raises:
        RunsError: a seed is in two of them, or they were decoded on other data or scored in other
            ways
    """
    found = [(path, row) for path in paths for row in read(path)]
    check_measures((f"{row.name} of {path}", row.scoring) for path, row in found)
    parts = defaultdict(list)
    for path, row in found:
        parts[row.name, row.test_set].append((path, row))
    return in_order([_joined(each) for each in parts.values()])


def _joined(parts: list[tuple[str, Row]]) -> Row:
    (first_path, first), *others = parts
    where = dict.fromkeys(first.seeds, first_path)
    for path, row in others:
        what = f"{row.name}, {row.test_set}"
        if not np.array_equal(row.words, first.words):
            raise RunsError(f"{what}: {first_path} and {path} were decoded on other data")
        for seed in row.seeds:
            if seed in where:
                raise RunsError(f"{what}: seed {seed} is in {where[seed]} and in {path}")
            where[seed] = path
    rows = [row for _, row in parts]
    return replace(
        first,
        seeds=[seed for row in rows for seed in row.seeds],
        errors=np.concatenate([row.errors for row in rows]),
        computes=[each for row in rows for each in row.computes],
        trainings=[each for row in rows for each in row.trainings],
    )


def timed(rows: list[Row], path: str) -> list[Row]:
    """The rows with the times of another run of them, and without any where that has none.

    Raises:
        RunsError: the other run has none of the rows
    """
    with_times = [row for row in read(path) if row.real_time_factor is not None]
    times = {(row.name, row.test_set): row for row in with_times}
    found = [_with_times(row, times.get((row.name, row.test_set))) for row in rows]
    if all(row.real_time_factor is None for row in found):
        has = f"it has {_some(with_times)}" if with_times else "none that it has was timed"
        raise RunsError(f"--times {path} has none of the rows: {_some(rows)}; {has}")
    return found


def untimed(rows: list[Row]) -> list[Row]:
    """The rows without times."""
    return [_with_times(row, None) for row in rows]


def _some(rows: list[Row]) -> str:
    """What a few of them are called, with their test sets."""
    names = [f"{row.name} ({row.test_set})" for row in rows]
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def _together(machines: list[dict]) -> dict:
    """Machines as one, in words where they are several."""
    return {
        name: " and ".join(dict.fromkeys(str(each.get(name)) for each in machines))
        for name in machines[0]
    }


def _with_times(row: Row, other: Row | None) -> Row:
    measured: dict = {}
    if other is not None:
        measured = {key: other.mean_of(key) for key in TIMES}
        measured["hardware"] = _together([each["hardware"] for each in other.computes])
    others = [
        {key: value for key, value in each.items() if key not in (*TIMES, "hardware")}
        for each in row.computes
    ]
    return replace(row, computes=[{**each, **measured} for each in others])
