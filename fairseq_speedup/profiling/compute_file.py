"""``compute.json``, beside fairseq's results: writing, reading and merging it."""

import contextlib
import json
import os
from collections import Counter

import numpy as np

from fairseq_speedup.files import written_whole
from fairseq_speedup.transformer.stage import frames_by_layer

FILE_NAME = "compute.json"
# what shards spend and have, each its own
ADDED = [
    "num_utterances",
    "num_windows",
    "audio_seconds",
    "encoder_seconds",
    "decoder_seconds",
    "decoder_wait_seconds",
    "num_frames",
    "num_searched_frames",
]


def write_report(report: dict, folder: str) -> str:
    """Writes ``compute.json`` into ``folder`` and returns its path."""
    path = os.path.join(folder, FILE_NAME)
    with written_whole(path) as part, open(part, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
        file.write("\n")
    return path


def read_report(folder: str, subset: str) -> dict | None:
    """The report of a subset in a folder, if there is one."""
    for name in (FILE_NAME, _kept_name(subset)):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                report = json.load(file)
            if report.get("gen_subset") == subset:
                return report
    return None


def merge_reports(reports: list[dict]) -> dict:
    """The report of one run, from those of its shards: what was spent is added up, wherever and
    whenever it was; the shards' own reports are kept under ``shards``."""
    merged = {
        name: value for name, value in reports[0].items() if name not in ("shard_id", "num_shards")
    }
    merged |= {name: sum(each[name] for each in reports) for name in ADDED if name in merged}
    audio_seconds = merged["audio_seconds"]
    spent = merged["encoder_seconds"] + merged["decoder_wait_seconds"]
    merged["real_time_factor"] = spent / audio_seconds if audio_seconds else None
    merged["peak_memory_bytes"] = max(each["peak_memory_bytes"] for each in reports)
    counted = [each for each in reports if each["macs_per_second"]]
    if counted:
        seconds = sum(each["audio_seconds"] for each in counted)
        weights = [each["audio_seconds"] / seconds for each in counted]
        by_stage = {
            stage: sum(
                weight * each["macs_per_second_by_stage"][stage]
                for weight, each in zip(weights, counted, strict=True)
            )
            for stage in counted[0]["macs_per_second_by_stage"]
        }
        merged["macs_per_second_by_stage"] = by_stage
        merged["macs_per_second"] = sum(by_stage.values())
    merged |= _merged_layers(reports)
    if "num_frames" in merged:
        merged |= searched_share(merged["num_frames"], merged["num_searched_frames"])
    return merged | {"shards": reports}


def _merged_layers(reports: list[dict]) -> dict:
    merged: dict = {}
    histogram: Counter = Counter()
    for report in reports:
        histogram.update(report.get("layers_run_histogram", {}))
    if histogram:
        total = sum(int(layers) * count for layers, count in histogram.items())
        merged["mean_layers_run"] = total / histogram.total()
        in_order = sorted(histogram, key=int)
        merged["layers_run_histogram"] = {layers: histogram[layers] for layers in in_order}
    by_layer = [report["frames_by_layer"] for report in reports if "frames_by_layer" in report]
    if by_layer:
        merged |= frames_by_layer(np.array(by_layer).sum(axis=0))
    return merged


def searched_share(num_frames: int, num_searched_frames: int) -> dict:
    """Of the frames that there were and those that a beam search went through."""
    return {
        "num_frames": num_frames,
        "num_searched_frames": num_searched_frames,
        "share_of_frames_searched": round(num_searched_frames / max(1, num_frames), 4),
    }


def _kept_name(subset: str) -> str:
    return FILE_NAME.replace(".json", f"-{subset}.json")


def clear_report(folder: str, subset: str) -> None:
    """Makes way for a new report before decoding starts: those of the same subset are deleted, as
    fairseq empties its results file; one of another is kept as ``compute-{its subset}.json``."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(folder, _kept_name(subset)))
    path = os.path.join(folder, FILE_NAME)
    try:
        with open(path, encoding="utf-8") as file:
            earlier = json.load(file).get("gen_subset")
    except (OSError, ValueError, AttributeError):
        return
    if earlier == subset:
        os.remove(path)
    else:
        kept = os.path.join(folder, _kept_name(earlier))
        os.replace(path, kept)
        print(f"kept the report of {earlier} as {kept}")
