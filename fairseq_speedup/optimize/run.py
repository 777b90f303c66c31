"""``python -m fairseq_speedup optimize``: from arguments to a folder with a faster model."""

import contextlib
import json
import math
import os
import shlex
import shutil
import sys
from pathlib import Path

import torch

from fairseq_speedup.console import progress
from fairseq_speedup.data.manifest import infer_labels, read_labels, read_manifest
from fairseq_speedup.decoding.language.boundaries import LabelWords
from fairseq_speedup.decoding.options import read_overrides
from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.export.command import EXPORT_PACKAGES
from fairseq_speedup.files import version
from fairseq_speedup.inference import kernels
from fairseq_speedup.optimize import outcome
from fairseq_speedup.optimize.bench import Bench
from fairseq_speedup.optimize.candidates import Candidate
from fairseq_speedup.optimize.commands import commands_of, confirm
from fairseq_speedup.optimize.outcome import EXPORTED, MODEL, PICTURE, RESULT, TABLE, Line
from fairseq_speedup.optimize.page import page_of
from fairseq_speedup.optimize.progress import Progress
from fairseq_speedup.optimize.search import Search, fastest
from fairseq_speedup.optimize.setup import Setup
from fairseq_speedup.optimize.training import trainings_of
from fairseq_speedup.profiling.environment import hardware, versions
from fairseq_speedup.report.pictures import MissingExtraError, check_installed
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

LOG, SCRATCH = "tried.jsonl", "work"
# that are no part of every installation, and change what candidates give or take
ENGINE_PACKAGES = sorted({"flashlight-text"}.union(*EXPORT_PACKAGES.values()))
HOPELESS = 90.0  # % of errors: a budget of points means nothing


class OptimizeError(ValueError):
    """What cannot be optimised, and why."""


def run(args) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # what else is printed is no result
        setup = setup_of(args)
        folder = prepared(args)
        try:
            page, found = _run(args, folder, setup)
        except KeyboardInterrupt:
            if not (folder / LOG).exists():
                raise OptimizeError("stopped before anything was measured") from None
            raise OptimizeError(
                f"stopped; {folder / LOG} has what was measured: the same command goes on from it"
            ) from None
    print(json.dumps(found, indent=2) if args.json else page)


def _run(args, folder: Path, setup: Setup) -> tuple[str, dict]:
    """Measures, and writes all that is left; the page, and the same as values."""
    budget = args.wer_budget
    base = Candidate(batch_size=1, threads=torch.get_num_threads())
    scoring = Scoring(post_process=setup.post_process)
    origin = _origin(args, setup, base)
    log = str(folder / LOG)
    with progress.step("measuring the model as it is", to_logs=True):
        bench = Bench(
            *(setup, base, log, origin, budget, scoring, args.user_dir, args.max_utterances),
            time_limit=args.time_limit or math.inf,
        )
    try:
        _check_baseline(bench)
        _say_what_is_there(bench, budget)
        with Progress(base, budget, bench.deadline) as shown:
            search = Search(bench, os.cpu_count() or 1, bench.deadline, shown)
            search.run(sorted({budget, budget / 2, 2 * budget}))
    finally:
        bench.close()
    if search.out_of_time:
        tried = len(bench.measured) - 1  # the first is the model as it is
        print(
            f"the time limit was reached, candidates tried: {tried}; the same command with a "
            "longer one goes on"
        )
    return finish(args, folder, setup, bench, budget)


def _origin(args, setup: Setup, base: Candidate) -> dict:
    """What measurements are of: they hold for nothing else."""
    return {
        "model": os.path.abspath(args.path),
        "data": setup.data or sorted(setup.audio),
        "gen_subset": setup.subset,
        "model_overrides": setup.overrides,
        "decoding": setup.decoding,
        "post_process": setup.post_process,
        "max_utterances": args.max_utterances,
        "user_dir": args.user_dir,
        "files": {name: version(path) for name, path in _files(args, setup).items()},
        "machine": hardware(setup.device),
        "threads": base.threads,
        "versions": versions(ENGINE_PACKAGES),
        "kernels": kernels.how(),
    }


def _files(args, setup: Setup) -> dict[str, str]:
    """Paths of what measurements depend on, by what it is: the model, labels and manifest or audio,
    and what options of decoding name."""
    found = {"model": args.path}
    if setup.data is None:
        found |= {path: path for path in setup.audio}
    else:
        split = os.path.join(setup.data, setup.subset)
        found["manifest"] = f"{split}.tsv"
        found["labels"] = f"{split}.{_labels(args)}"
    given = setup.decoding.items()
    return found | {name: path for name, path in given if os.path.isfile(str(path))}


def _labels(args) -> str:
    return args.labels or infer_labels(args.data, "--labels")


# -- before --------------------------------------------------------------------------------------


def prepared(args) -> Path:
    """The folder of --output, ours or new."""
    folder = Path(args.output)
    if folder.exists() and not folder.is_dir():
        raise OptimizeError(f"--output {folder} is a file; give a folder that is new or of a run")
    ours = any((folder / name).exists() for name in (LOG, RESULT, SCRATCH))
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise OptimizeError(
            f"--output {folder} is not empty and no run of optimize has made it: name another"
        )
    if ours and args.overwrite:
        for name in (LOG, MODEL, *EXPORTED, TABLE, PICTURE, RESULT):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    try:
        (folder / SCRATCH).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptimizeError(f"--output {folder} cannot be made: {error.strerror}") from None
    return folder


def setup_of(args) -> Setup:
    post_process = args.post_process or "letter"
    if args.data is not None:
        labels = _labels(args)
        split = os.path.join(args.data, args.gen_subset)
        lines = read_labels(f"{split}.{labels}", read_manifest(f"{split}.tsv"))
        words = LabelWords.of(f"{split}.{labels}", lines)
        post_process = words.chosen(args.post_process, labels)
    return Setup(
        path=args.path,
        data=args.data,
        subset=args.gen_subset,
        audio=args.audio_files,
        overrides=read_overrides(args.model_overrides),
        decoding=args.decoding,
        post_process=post_process,
        folder=os.path.join(args.output, SCRATCH),
        cpu=args.cpu,
    )


def _check_baseline(bench: Bench) -> None:
    base = bench.measured[bench.base.key]
    if base.failed:
        raise OptimizeError(f"the model as it is cannot be run: {base.failed}")
    if not sum(bench.num_words):
        raise OptimizeError(
            "there are no words to count errors in: the references are empty"
            if bench.by_labels
            else "the model gives no words for this audio: there is nothing to compare with"
        )
    if bench.by_labels and bench.error_rate(base) > HOPELESS:
        raise OptimizeError(
            f"the model as it is has {bench.error_rate(base):.1f} % errors: a budget means nothing "
            "there. Look at its transcripts first (fairseq-generate): are the dictionary and "
            "task.normalize those of its training, and is --post-process right for its labels?"
        )


def _say_what_is_there(bench: Bench, budget: float) -> None:
    seconds = sum(bench.num_samples[index] for index in bench.indices) / SAMPLE_RATE_HZ
    base = bench.measured[bench.base.key]
    rate = (
        f"{bench.scoring.measure} {bench.error_rate(base):.2f} %"
        if bench.by_labels
        else "compared with the model's own transcripts"
    )
    print(
        f"{len(bench.indices)} utterances, {seconds / 60:.1f} minutes, {sum(bench.num_words)} "
        f"words; {rate}; budget {budget:g} points"
    )


# -- after ---------------------------------------------------------------------------------------


def finish(args, folder: Path, setup: Setup, bench: Bench, budget: float) -> tuple[str, dict]:
    """Writes all that is left and tries the commands; the page, and the same as values."""
    base = bench.measured[bench.base.key]
    best = fastest(bench, budget)
    in_torch = fastest(bench, budget, engines=("torch",))
    lines = [
        Line("as it is", base),
        Line(f"best within {budget:g}", best),
        Line(f"within {budget / 2:g}", fastest(bench, budget / 2)),
        Line(f"within {2 * budget:g}", fastest(bench, 2 * budget)),
    ]
    with progress.step(f"writing {folder / MODEL}, and trying the commands", to_logs=True):
        outcome.write_model(setup, in_torch.candidate, folder)
    written = [MODEL]
    for name in EXPORTED:
        (folder / name).unlink(missing_ok=True)
    if best is not in_torch:
        lines.insert(2, Line(f"of these, in {MODEL}", in_torch))
        written += outcome.keep_exported(setup, best.candidate, folder)
    commands = commands_of(args, folder, setup, best, in_torch)
    tried = progress.bar(commands, "trying the commands", unit=" commands", delay=0)
    confirmed = [confirm(command, folder, setup, bench) for command in tried]
    training = [] if setup.data is None else trainings_of(setup, bench.subject, args.user_dir)
    found = outcome.as_json(
        bench,
        lines,
        budget=budget,
        commands=[shlex.join(each) for each in commands],
        confirmed=confirmed,
        training=[
            {
                "command": command,
                "share_of_macs": each.share,
                "expectation": each.expectation,
                "then": each.then,
            }
            for command, each in training
        ],
        hardware=hardware(setup.device),
    )
    page = page_of(bench, lines, best, budget, commands, confirmed, training)
    (folder / TABLE).write_text(page, encoding="utf-8")
    outcome.write_json(found, folder / RESULT)
    try:
        check_installed()
        outcome.draw(bench, lines, folder / PICTURE)
        written.append(PICTURE)
    except MissingExtraError as error:
        print(f"no picture: {error}")
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    print(f"wrote {', '.join(str(folder / each) for each in [*written, TABLE, RESULT, LOG])}")
    return page, found
