"""Rows in one file, so that a report can be made again without the runs."""

import gzip
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fairseq_speedup.report.runs import Row, RunsError, TestSet, Training

FORMAT = "fairseq_speedup report 1"
# of compute.json: what the report needs, and what says where it comes from
KEPT = (
    "options",
    "decoding",
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
    Path(path).write_bytes(gzip.compress(data, mtime=0) if path.endswith(".gz") else data)


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
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}")
        return [_row(record) for record in found["rows"]]
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        raise RunsError(f"{path} is no file of `report --save`: {error!r}") from None


def _row(record: dict) -> Row:
    return Row(
        record["name"],
        TestSet(**record["test_set"]),
        record["seeds"],
        np.array(record["errors"]),
        np.array(record["words"]),
        record["computes"],
        [Training(**each) for each in record["trainings"]],
    )
