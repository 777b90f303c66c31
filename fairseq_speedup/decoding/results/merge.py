"""The results of shards as those of one run, and their WER."""

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fairseq_speedup.data.manifest import read_lines
from fairseq_speedup.decoding.options import deciding
from fairseq_speedup.decoding.results.generated import (
    Utterance,
    ctm_path,
    generate_path,
    nbest_path,
    read_generated,
)
from fairseq_speedup.decoding.results.scoring import FIELD, Scoring
from fairseq_speedup.files import written_whole
from fairseq_speedup.profiling.compute_file import (
    FILE_NAME,
    clear_report,
    merge_reports,
    read_report,
    write_report,
)

MAX_NAMED = 5
WER_DIGITS = 2  # as fairseq prints it
# of compute.json, what merging counts with
NUMBERS: dict[str, Any] = {
    "num_utterances": int,
    "utterances_in_subset": int,
    "num_shards": int,
    "shard_id": int,
    "audio_seconds": int | float,
    "encoder_seconds": int | float,
    "decoder_wait_seconds": int | float,
    "peak_memory_bytes": int | float,
    "macs_per_second": int | float | None,
}
NOT_RECORDED = (
    f"it was scored with fairseq's --wer-... options by an earlier version, whose {FILE_NAME} does "
    "not tell them: decode it again"
)


class MergeError(ValueError):
    """Results that are not the shards of one run."""


def run(args: Namespace) -> None:
    output = generate_path(args.output, args.gen_subset)
    if os.path.abspath(args.output) in map(os.path.abspath, args.results):
        raise MergeError(f"--output {args.output} is one of the shards: give another folder")
    if os.path.exists(output) and not args.overwrite:
        raise MergeError(f"{output} exists; give --overwrite to replace it")
    shards = [read_shard(folder, args.gen_subset) for folder in args.results]
    check_complete(shards)
    merged = {index: each for shard in shards for index, each in shard.utterances.items()}
    wer = Scoring.of_compute(shards[0].report).error_rate(
        _pairs(each for _, each in sorted(merged.items()))
    )

    os.makedirs(args.output, exist_ok=True)
    last_line = _with_wer(shards[0].last_line, wer)
    clear_report(args.output, args.gen_subset)
    with written_whole(output) as part, open(part, "w", encoding="utf-8") as file:
        for _, each in sorted(merged.items()):
            file.writelines(f"{line}\n" for line in each.lines)
        file.write(f"{last_line}\n")
    written = [output]
    written += _merge_rows(nbest_path, args, header=True, key=lambda row: int(row.split("\t")[0]))
    written += _merge_rows(ctm_path, args, header=False, key=lambda row: row.split(" ")[0])
    report = merge_reports([each.report for each in shards])
    written.append(write_report(report, args.output))  # the last: it says that all is there
    print(f"wrote {', '.join(written)}")
    print(f"{len(merged)} utterances of {len(shards)} shards: {last_line}")


@dataclass
class Shard:
    """utterances: by number; report: compute.json; last_line: of fairseq's results, with the WER"""

    folder: str
    utterances: dict[int, Utterance]
    report: dict
    last_line: str


def _pairs(utterances: Iterable[Utterance]) -> list[tuple[str, str]]:
    """References and hypotheses, of which none is missing."""
    return [(each.reference, each.hypothesis or "") for each in utterances]


def read_shard(folder: str, subset: str) -> Shard:
    """
    Raises:
        FileNotFoundError, MergeError: naming the file
    """
    path = generate_path(folder, subset)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: {folder} has no results of {subset}")
    report = read_report(folder, subset)
    if report is None:
        raise FileNotFoundError(
            f"{folder} has no {FILE_NAME} of {subset}: that shard did not end, decode it again"
        )
    for name, kind in NUMBERS.items():
        if not isinstance(report.get(name), kind):
            raise MergeError(f"{FILE_NAME} of {folder}: {name} is {report.get(name)!r:.50}")
    utterances, last_line = read_generated(path)
    missing = [number for number, each in utterances.items() if each.hypothesis is None]
    if missing or len(utterances) != report["num_utterances"]:
        raise MergeError(
            f"{path} has the hypotheses of {len(utterances) - len(missing)} utterances, "
            f"{FILE_NAME} says {report['num_utterances']}: decode that shard again, without --quiet"
        )
    if "WER: " not in last_line:
        raise MergeError(f"{path} ends without WER: decode with --scoring wer")
    try:
        scoring = Scoring.of_compute(report)
    except ValueError as error:
        raise MergeError(f"{FILE_NAME} of {folder}: {error}") from None
    wer = scoring.error_rate(_pairs(utterances.values()))
    if _with_wer(last_line, wer) != last_line:
        raise MergeError(
            f"{path} says {last_line.partition('WER: ')[2]} % WER, its lines give {wer:.2f} as "
            f"{scoring}: " + ("it was changed" if FIELD in report else NOT_RECORDED)
        )
    return Shard(folder, utterances, report, last_line)


def check_complete(shards: list[Shard]) -> None:
    """Raises MergeError unless these are all shards of one run, once each."""
    first = shards[0]
    for name in ("checkpoint", "options", "decoding", FIELD, "num_shards", "utterances_in_subset"):
        expected, *others = [_deciding(name, each.report.get(name)) for each in shards]
        for each, found in zip(shards[1:], others, strict=True):
            if found != expected:
                raise MergeError(
                    f"{first.folder} and {each.folder} are of other runs: {name} is "
                    f"{expected} and {found}"
                )
    num_shards = first.report["num_shards"]
    found = [each.report["shard_id"] for each in shards]
    lost = sorted(set(range(num_shards)) - set(found))
    if lost:
        raise MergeError(
            f"shards {', '.join(map(str, lost))} of {num_shards} are missing: decode them with "
            "--shard-id, or give their results"
        )
    counts = Counter(number for each in shards for number in each.utterances)
    double = [number for number, count in counts.items() if count > 1]
    if double or len(shards) > num_shards:
        named = ", ".join(map(str, double[:MAX_NAMED]))
        raise MergeError(f"a shard is given twice, or utterances are in two shards: {named}")
    in_subset = first.report["utterances_in_subset"]
    if len(counts) != in_subset:
        raise MergeError(f"the shards have {len(counts)} utterances, the data set {in_subset}")


def _deciding(name: str, value: Any) -> Any:
    """Of a field of compute.json, what all shards of a run have alike."""
    return deciding(value) if name == "decoding" and isinstance(value, dict) else value


def _with_wer(line: str, wer: float) -> str:
    return f"{line.partition('WER: ')[0]}WER: {wer:.{WER_DIGITS}f}"


def _merge_rows(
    path_of: Callable[[str, str], str], args: Namespace, header: bool, key: Callable[[str], Any]
) -> list[str]:
    """Joins the shards' files of one kind, where all have one, sorted by ``key``."""
    paths = [path_of(folder, args.gen_subset) for folder in args.results]
    output = path_of(args.output, args.gen_subset)
    if not all(os.path.isfile(path) for path in paths):
        if os.path.exists(output):
            os.remove(output)
        return []
    first: list[str] = []
    rows: list[str] = []
    for path in paths:
        lines = read_lines(path)
        first, lines = (lines[:1], lines[1:]) if header else ([], lines)
        rows += lines
    with written_whole(output) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in [*first, *sorted(rows, key=key)])
    return [output]
