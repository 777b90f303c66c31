"""Decoded runs, read from a tree of folders."""

import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fairseq_speedup.data.manifest import ManifestError, read_manifest
from fairseq_speedup.decoding.results.generated import generate_path, read_generated
from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

SEED = re.compile(r"seed[=_-]?(\d+)")
REPEAT = re.compile(r"run[=_-]?\d+")  # the same decoding again, for its time
TRAINING_LOG = "hydra_train.log"
TIMES = ("real_time_factor", "encoder_seconds", "decoder_seconds")  # of compute.json
NUMBERS = (*TIMES, "macs_per_second", "mean_layers_run", "share_of_frames_searched")
EXACT_FORMS = ("none", "fp32")  # the others round: what they give is a row of its own
STARTED = re.compile(r"training on \d+ devices")
TRAINED = re.compile(r"done training in ([\d.]+) seconds")


class RunsError(ValueError):
    """A folder without results, or with some that do not go together."""


@dataclass(frozen=True)
class TestSet:
    """A split and how it was decoded: each pair has a WER of its own."""

    subset: str
    decoder: str

    def __str__(self) -> str:
        return self.subset if self.decoder == "greedy" else f"{self.subset}, {self.decoder}"


@dataclass
class Decoding:
    """One results folder of fairseq-generate.

    row: what it is called
    seed: of training, None where nothing tells
    errors, words: (U,), of each utterance: edit distance and length of the reference, in words or
        what else it was scored in
    compute: what compute.json holds
    training: see :class:`Training`
    """

    row: str
    seed: int | None
    test_set: TestSet
    errors: np.ndarray
    words: np.ndarray
    compute: dict
    training: "Training"

    @property
    def wer(self) -> float:
        """In percent."""
        return 100 * self.errors.sum() / max(1, self.words.sum())


@dataclass(frozen=True)
class Training:
    """What the folder of a checkpoint tells, None where it does not.

    seed: common.seed
    hours: of labelled audio, by the manifest
    seconds: that training took
    labels: task.labels
    """

    seed: int | None = None
    hours: float | None = None
    seconds: float | None = None
    labels: str | None = None


def rates_of(errors: np.ndarray, words: np.ndarray) -> list[float]:
    """Error rates of each seed, in percent.

    Args:
        errors: (seeds, U), of each utterance
        words: (U,), of its reference
    """
    return (100 * errors.sum(axis=1) / max(1, words.sum())).tolist()


@dataclass(eq=False)  # arrays do not compare as a whole
class Row:
    """The decodings of one model's seeds on one test set.

    errors: (seeds, U); words: (U,); see :class:`Decoding`
    computes: compute.json of each seed, its times the medians of the seed's repeats
    """

    name: str
    test_set: TestSet
    seeds: list[int | None]
    errors: np.ndarray
    words: np.ndarray
    computes: list[dict] = field(repr=False)
    trainings: list[Training] = field(repr=False)

    @property
    def scoring(self) -> Scoring:
        return Scoring.of_compute(self.computes[0])

    @property
    def wers(self) -> list[float]:
        """Of each seed, in percent."""
        return rates_of(self.errors, self.words)

    @property
    def wer(self) -> float:
        return mean(self.wers)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds, None of one."""
        return stdev(self.wers) if len(self.seeds) > 1 else None

    @property
    def gmacs_per_second(self) -> float | None:
        """1e9 multiply-accumulates per second of audio."""
        found = self.mean_of("macs_per_second")
        return found and found / 1e9

    @property
    def real_time_factor(self) -> float | None:
        return self.mean_of("real_time_factor")

    @property
    def encoder_seconds(self) -> float | None:
        return self.mean_of("encoder_seconds")

    @property
    def decoder_seconds(self) -> float | None:
        return self.mean_of("decoder_seconds")

    @property
    def percent_searched(self) -> float | None:
        """Of frames, by a beam search that skips blanks."""
        found = self.mean_of("share_of_frames_searched")
        return None if found is None else 100 * found

    @property
    def mean_layers(self) -> float | None:
        return self.mean_of("mean_layers_run")

    def mean_of(self, key: str) -> float | None:
        """Over seeds, None where one of them has no such number."""
        found = [each[key] for each in self.computes if each.get(key) is not None]
        return mean(found) if len(found) == len(self.computes) else None

    @property
    def hours(self) -> float | None:
        return self.trainings[0].hours

    @property
    def training_seconds(self) -> float | None:
        found = [each.seconds for each in self.trainings if each.seconds is not None]
        return mean(found) if found else None

    @property
    def method(self) -> str:
        """The same for all amounts of data."""
        labels = self.trainings[0].labels
        options = {
            name: value
            for name, value in self.computes[0]["options"].items()
            if name not in ("w2v_path", "finetune_from_model")
        }
        return json.dumps([labels, options], sort_keys=True, default=str)


def read_runs(folder: str) -> list[Row]:
    """Rows of every results folder below ``folder``, in the order of their names.

    A results folder ``conv2/seed1/test_lm`` is of the row ``conv2``: its path up to a part that
    names the seed. Without such a part the whole path is the row's name, but for parts ``run1``,
    ``run2`` and so on, which repeat a decoding. What was decoded in a form that rounds has that in
    its name: ``conv2, int8``.

    Raises:
        RunsError: naming the folder and what is wrong
    """
    if not os.path.isdir(folder):
        raise RunsError(f"{folder} is no folder of results, nor a file of --save")
    reports = sorted(_reports_below(folder))
    if not reports:
        raise RunsError(
            f"{folder} holds no compute.json: decode with fairseq-generate, --results-path in it"
        )
    decodings = [read_decoding(Path(folder), path) for path in reports]
    first_of: dict[tuple[Path, str], Path] = {}
    for path, each in zip(reports, decodings, strict=True):
        first = first_of.setdefault((path.parent, each.test_set.subset), path)
        if first != path:
            raise RunsError(
                f"{first} and {path} are both of {each.test_set.subset}, and there are results of "
                "one: remove the older"
            )
    check_measures(
        (str(path.parent), Scoring.of_compute(each.compute))
        for path, each in zip(reports, decodings, strict=True)
    )
    groups = defaultdict(list)
    for decoding in decodings:
        groups[decoding.row, decoding.test_set].append(decoding)
    rows = [_row(*key, decodings) for key, decodings in groups.items()]
    return in_order(rows)


def _reports_below(folder: str) -> Iterator[Path]:
    """compute.json and its kind; links to folders are followed, each folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(parent, each) for each in files if fnmatch(each, "compute*.json"))


def in_order(rows: list[Row]) -> list[Row]:
    """By test set, then by name with its numbers by value."""
    return sorted(rows, key=lambda row: (str(row.test_set), _natural(row.name)))


def check_measures(found) -> Scoring:
    """What all results are scored in.

    Args:
        found: (where, scoring) pairs
    Raises:
        RunsError: two of them are scored in other ways
    """
    # those that tell their post-processing first: the others go with any
    ordered = sorted(found, key=lambda each: each[1].post_process is None)
    where, scoring = ordered[0]
    for other_where, other in ordered[1:]:
        if not scoring.agrees(other):
            raise RunsError(
                f"{where} is scored as {scoring} and {other_where} as {other}: error rates of "
                "several measures make no comparison; decode with the same options of --scoring "
                "and --post-process, or report them apart"
            )
    return scoring


def check_compute(compute: dict) -> None:
    """Raises ValueError for what no compute.json holds, or lacks."""
    if not isinstance(compute, dict):
        raise ValueError(f"{compute!r:.50} is no JSON object")
    Scoring.of_compute(compute)
    for key in NUMBERS:
        if not isinstance(compute.get(key), int | float | None):
            raise ValueError(f"{key} is {compute[key]!r:.50}, not a number")
    needed = {"options"}
    if compute.get("real_time_factor") is not None:
        needed.add("hardware")
    if compute.get("mean_layers_run") is not None:
        needed.add("layers_run_histogram")
    for key in ("options", "decoding", "hardware", "layers_run_histogram"):
        if key in needed and key not in compute:
            raise ValueError(f"{key} is missing")
        if not isinstance(compute.get(key, {}), dict):
            raise ValueError(f"{key} is {compute[key]!r:.50}, not a JSON object")
    for layers, count in compute.get("layers_run_histogram", {}).items():
        if not layers.isdecimal() or not isinstance(count, int):
            raise ValueError(f"layers_run_histogram holds {layers!r:.50}: {count!r:.50}")


def read_decoding(root: Path, path: Path) -> Decoding:
    """
    Args:
        root: folder that the row's name is relative to
        path: of a compute.json
    """
    try:
        compute = json.loads(path.read_text(encoding="utf-8"))
        check_compute(compute)
        for name, kind in [("gen_subset", str), ("num_utterances", int)]:
            if not isinstance(compute.get(name), kind):
                raise ValueError(f"{name} is {compute.get(name)!r:.50}")
    except (ValueError, RecursionError) as error:
        raise RunsError(f"{path} is no report of fairseq-generate: {error}") from None
    subset = compute["gen_subset"]
    if compute.get("num_shards", 1) != 1:
        raise RunsError(
            f"{path} is of shard {compute.get('shard_id')} of {compute['num_shards']} of {subset}: "
            "put them together with merge, and give its --output in their place"
        )
    generated = generate_path(str(path.parent), subset)
    if not os.path.isfile(generated):
        raise RunsError(f"{path} is of {subset}, but {generated} does not exist")
    utterances, _ = read_generated(generated)
    undone = sum(each.hypothesis is None for each in utterances.values())
    if undone or len(utterances) != compute["num_utterances"]:
        raise RunsError(
            f"{generated} has {len(utterances) - undone} hypotheses, {path} says "
            f"{compute['num_utterances']}: decode it again, without --quiet"
        )
    in_order = [utterances[number] for number in sorted(utterances)]
    pairs = [(each.reference, each.hypothesis or "") for each in in_order]  # none is missing
    errors, words = Scoring.of_compute(compute).counts(pairs)
    row, seed = _named(root, path.parent)
    if (form := _form(compute)) not in EXACT_FORMS:
        row = f"{row}, {form}"
    training = read_training(compute.get("checkpoint"))
    return Decoding(
        row,
        training.seed if seed is None else seed,
        TestSet(subset, _decoder(compute.get("decoding", {}))),
        np.array(errors),
        np.array(words),
        compute,
        training,
    )


def _form(compute: dict) -> str:
    """Of ``--inference``."""
    told = compute.get("inference")
    return str(told.get("form", "none")) if isinstance(told, dict) else "none"


def _decoder(decoding: dict) -> str:
    if decoding.get("kenlm_model"):
        return "LM"
    return str(decoding.get("ctc_decoder", "greedy"))


def _named(root: Path, folder: Path) -> tuple[str, int | None]:
    parts = folder.relative_to(root).parts
    for index, part in enumerate(parts):
        if seed := SEED.fullmatch(part):
            return "/".join(parts[:index]) or root.name, int(seed[1])
    kept = [part for part in parts if not REPEAT.fullmatch(part)]
    return "/".join(kept) or root.name, None


def read_training(checkpoint: str | None) -> Training:
    """What is beside a checkpoint that fairseq-hydra-train wrote, or one folder up."""
    for folder in list(Path(checkpoint or "").parents)[:2]:
        config = folder / ".hydra/config.yaml"
        if checkpoint and config.is_file():
            return _training_in(folder)
    return Training()


@cache
def _training_in(folder: Path) -> Training:
    path = folder / ".hydra/config.yaml"
    try:
        cfg = OmegaConf.load(path)
        data = OmegaConf.select(cfg, "task.data")
        split = OmegaConf.select(cfg, "dataset.train_subset", default="train")
        rate = OmegaConf.select(cfg, "task.sample_rate", default=SAMPLE_RATE_HZ)
        seed = OmegaConf.select(cfg, "common.seed")
        labels = OmegaConf.select(cfg, "task.labels")
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise RunsError(f"{path} is no config of a training: {error}") from None
    hours = None
    try:
        manifest = read_manifest(os.path.join(str(data), f"{split}.tsv"))
        hours = sum(manifest.num_samples) / rate / 3600
    except (OSError, ManifestError):
        pass  # the data are elsewhere
    return Training(seed, hours, _seconds_in(folder / TRAINING_LOG), labels)


def _seconds_in(log: Path) -> float | None:
    """Of all processes that wrote a log of training, None where one was broken off before it could
    say how long it took."""
    if not log.is_file():
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    trained = TRAINED.findall(text)
    if not trained or len(STARTED.findall(text)) > len(trained):
        return None
    return sum(map(float, trained))


def _row(name: str, test_set: TestSet, decodings: list[Decoding]) -> Row:
    by_seed = defaultdict(list)
    for decoding in decodings:
        by_seed[decoding.seed].append(decoding)
    firsts = []
    for seed, repeats in by_seed.items():
        first = repeats[0]
        for other in repeats[1:]:
            if not np.array_equal(first.errors, other.errors):
                raise RunsError(
                    f"{name}, {test_set}, seed {seed}: two results differ (WER {first.wer:.2f} and "
                    f"{other.wer:.2f} %); folders of several models need names of their own"
                )
        firsts.append(first)
    for other in firsts[1:]:
        if not np.array_equal(firsts[0].words, other.words):
            raise RunsError(f"{name}, {test_set}: its seeds were decoded on other data")
    return Row(
        name,
        test_set,
        list(by_seed),
        np.stack([each.errors for each in firsts]),
        firsts[0].words,
        [
            _typical(f"{name}, {test_set}, seed {seed}", [each.compute for each in repeats])
            for seed, repeats in by_seed.items()
        ],
        [each.training for each in firsts],
    )


def _typical(what: str, repeats: list[dict]) -> dict:
    """The first of several repeats, with the medians of the times that were taken as its own were:
    in its form, on its machine."""

    def taken(compute: dict) -> tuple:
        return _form(compute), compute.get("hardware")

    alike = [each for each in repeats if taken(each) == taken(repeats[0])]
    if len(alike) < len(repeats):
        print(
            f"note: {what}: of {len(repeats)} decodings {len(repeats) - len(alike)} are of another "
            "machine or inference form than the first, and left out of its times",
            file=sys.stderr,
        )

    def in_all(key: str) -> bool:
        return all(each.get(key) is not None for each in alike)

    times = {key: [each[key] for each in alike] for key in TIMES if in_all(key)}
    return {**repeats[0], **{key: median(found) for key, found in times.items()}}


def _natural(name: str) -> list:
    """For sorting: numbers by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
