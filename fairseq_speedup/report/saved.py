"""Rows in one file, so that a report can be made again without the runs."""

import gzip
import json
import os
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fairseq_speedup.decoding.results.scoring import FIELD
from fairseq_speedup.files import written_whole
from fairseq_speedup.report.runs import Row, RunsError, TestSet, Training, check_compute

FORMAT = "fairseq_speedup report 1"
# of compute.json: what the report needs, and what says where it comes from
KEPT = (
    "options",
    "decoding",
    FIELD,
    "inference",
    "parameters",
    "audio_seconds",
    "macs_per_second",
    "encoder_seconds",
    "decoder_seconds",
    "real_time_factor",
    "mean_layers_run",
    "layers_run_histogram",
    "share_of_frames_searched",
    "hardware",
    "versions",
)


def save(rows: list[Row], path: str) -> None:
    """Writes rows as JSON, compressed where the name ends in .gz: the same rows, the same bytes."""
    records = [_record(row) for row in rows]
    text = json.dumps({"format": FORMAT, "rows": records}, separators=(",", ":"), sort_keys=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = f"{text}\n".encode()
    with written_whole(path) as part:
        Path(part).write_bytes(gzip.compress(data, mtime=0) if path.endswith(".gz") else data)


def _record(row: Row) -> dict:
    return {
        "name": row.name,
        "test_set": asdict(row.test_set),
        "seeds": row.seeds,
        "errors": row.errors.tolist(),
        "words": row.words.tolist(),
        "computes": [_kept(each) for each in row.computes],
        "trainings": [asdict(each) for each in row.trainings],
    }


def _kept(compute: dict) -> dict:
    """What a report needs, with the names of files but not where they lay on that machine."""
    kept = {key: compute[key] for key in KEPT if key in compute}
    if "decoding" in kept:
        kept["decoding"] = {key: _without_folder(each) for key, each in kept["decoding"].items()}
    return kept


def _without_folder(value):
    is_path = isinstance(value, str) and os.path.isabs(value)
    return os.path.basename(value) if is_path else value


def load(path: str) -> list[Row]:
    """Rows that :func:`save` wrote.

    Raises:
        RunsError: another file
    """
    data = Path(path).read_bytes()
    try:
        found = json.loads(gzip.decompress(data) if path.endswith(".gz") else data)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        if not isinstance(found.get("rows"), list) or not found["rows"]:
            raise ValueError("it holds no rows")
        return [_row(number, record) for number, record in enumerate(found["rows"], start=1)]
    except (ValueError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise RunsError(f"{path} is no file of `report --save`: {error}") from None


def _row(number: int, record: dict) -> Row:
    """
    Args:
        number: of the row in the file, from 1
    Raises:
        ValueError: naming the row and what is wrong
    """
    try:
        return _checked(record)
    except (ValueError, KeyError, TypeError) as error:
        name = record.get("name") if isinstance(record, dict) else None
        called = f" ({name})" if isinstance(name, str) else ""
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"row {number}{called}: {what}") from None


def _checked(record: dict) -> Row:
    test_set, seeds = TestSet(**record["test_set"]), record["seeds"]
    for what in (record["name"], test_set.subset, test_set.decoder):
        if not isinstance(what, str):
            raise ValueError(f"{what!r:.50} is no name")
    whole = isinstance(seeds, list) and all(isinstance(seed, int | None) for seed in seeds)
    if not seeds or not whole:
        raise ValueError(f"seeds is {seeds!r:.50}, not a list of whole numbers")
    computes, trainings = record["computes"], record["trainings"]
    for key, found in [("computes", computes), ("trainings", trainings)]:
        if not isinstance(found, list) or len(found) != len(seeds):
            raise ValueError(f"{key} must be a list of {len(seeds)}, one for each seed")
    for compute in computes:
        check_compute(compute)
    trainings = [Training(**each) for each in trainings]
    for each in trainings:
        if not all(isinstance(value, int | float | None) for value in (each.hours, each.seconds)):
            raise ValueError(f"trainings holds {asdict(each)}")
    if not isinstance(record["words"], list) or not record["words"]:
        raise ValueError("words must be a list, of how many each utterance has")
    words = _counts(record, "words", (len(record["words"]),))
    errors = _counts(record, "errors", (len(seeds), len(words)))
    return Row(record["name"], test_set, seeds, errors, words, computes, trainings)


def _counts(record: dict, key: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        found = np.array(record[key])
    except ValueError:  # lists of several lengths
        found = np.zeros(0)
    if found.shape != shape or found.dtype.kind != "i" or found.min() < 0:
        raise ValueError(f"{key} must be {' x '.join(map(str, shape))} whole numbers from 0 on")
    return found
