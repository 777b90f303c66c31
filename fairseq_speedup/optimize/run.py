"""``python -m fairseq_speedup optimize``: from arguments to a folder with a faster model."""

import contextlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from fairseq_speedup.config import switched_on
from fairseq_speedup.console import progress
from fairseq_speedup.data.manifest import infer_labels, read_labels, read_manifest
from fairseq_speedup.decoding.language.boundaries import LabelWords
from fairseq_speedup.decoding.options import option, read_overrides
from fairseq_speedup.decoding.results.generated import generate_path
from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.export.command import EXPORT_PACKAGES
from fairseq_speedup.files import version
from fairseq_speedup.inference import kernels
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.optimize import outcome
from fairseq_speedup.optimize.bench import Bench, Measured
from fairseq_speedup.optimize.candidates import Candidate
from fairseq_speedup.optimize.outcome import EXPORTED, MODEL, PICTURE, RESULT, TABLE, Line
from fairseq_speedup.optimize.progress import Progress
from fairseq_speedup.optimize.search import Search, fastest
from fairseq_speedup.optimize.setup import Setup
from fairseq_speedup.optimize.suggestions import suggestions
from fairseq_speedup.optimize.training import Recipe
from fairseq_speedup.profiling.environment import hardware, versions
from fairseq_speedup.report.pictures import MissingExtraError, check_installed
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

LOG, SCRATCH, RESULTS = "tried.jsonl", "work", "results"
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
    training = []
    if setup.data is not None:
        model, cfg, _ = load_finetuned(setup.path, "", setup.options())
        recipe = recipe_of(args, setup, setup.data, cfg)
        training = [
            (recipe.command(each), each)
            for each in suggestions(bench.subject, switched_on(model.cfg), recipe.hours)
        ]
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


def commands_of(
    args, folder: Path, setup: Setup, best: Measured, in_torch: Measured
) -> list[list[str]]:
    """To use the result: on the split (where there is one), and on a file."""
    user_dir = _user_dir(args)
    python = ["python", "-m", "fairseq_speedup"]
    python += ["--user-dir", args.user_dir] if args.user_dir else []
    commands = []
    if setup.data is not None:
        candidate = in_torch.candidate
        commands.append(
            [
                *(*_threads(candidate), "fairseq-generate", setup.data, "--user-dir", user_dir),
                *("--task", "speedup_finetuning", "--path", str(folder / MODEL)),
                *("--gen-subset", setup.subset, "--batch-size", str(candidate.batch_size)),
                *("--scoring", "wer", "--post-process", setup.post_process),
                *options_of(args, setup, candidate),
                *([] if args.labels is None else ["--labels", args.labels]),
                *("--results-path", str(folder / RESULTS)),
            ]
        )
    candidate = best.candidate
    exported = candidate.engine != "torch"
    model = folder / (outcome.exported_name(candidate) if exported else MODEL)
    audio = setup.audio if setup.data is None else [_a_file(setup.data, setup.subset)]
    options = options_of(args, setup, candidate)
    command = [*_threads(candidate), *python, "transcribe", "--path", str(model), *options]
    return [*commands, [*command, audio[0]]]


def _user_dir(args) -> str:
    return args.user_dir or str(Path(__file__).parents[1])


def _threads(candidate: Candidate) -> list[str]:
    if candidate.threads == torch.get_num_threads():
        return []
    return ["env", f"OMP_NUM_THREADS={candidate.threads}"]


def options_of(args, setup: Setup, candidate: Candidate) -> list[str]:
    """Of decoding, as commands take them."""
    options = ["--cpu"] if args.cpu else []
    for name, value in {**setup.decoding, **candidate.decoding}.items():
        options += [option(name)] if value is True else [option(name), str(value)]
    return options


def _a_file(data: str, subset: str) -> str:
    manifest = read_manifest(os.path.join(data, f"{subset}.tsv"))
    return os.path.join(manifest.root, manifest.files[0])


def confirm(command: list[str], folder: Path, setup: Setup, bench: Bench) -> str:
    """Runs a command before it is printed; what it said last."""
    if "fairseq-generate" in command and len(bench.indices) < len(bench.num_samples):
        return (
            f"not tried: it decodes all {len(bench.num_samples)} utterances of {setup.subset}, of "
            f"which {len(bench.indices)} were measured"
        )
    found = subprocess.run(_runnable(command), capture_output=True, text=True)
    if found.returncode != 0:
        reason = (found.stderr.strip() or "nothing said").splitlines()[-1]
        return f"failed (status {found.returncode}): {reason}"
    said = found.stdout
    if "fairseq-generate" in command:  # with --results-path its error rate is there
        said = Path(generate_path(str(folder / RESULTS), setup.subset)).read_text(encoding="utf-8")
    return [line for line in said.splitlines() if line.strip()][-1]


def _runnable(command: list[str]) -> list[str]:
    """With the programs of this environment, whatever PATH says."""
    generate = os.path.join(os.path.dirname(sys.executable), "fairseq-generate")
    here = {"python": sys.executable}
    if os.path.exists(generate):
        here["fairseq-generate"] = generate
    return [here.get(word, word) for word in command]


def recipe_of(args, setup: Setup, data: str, cfg) -> Recipe:
    config_dir = Path(__file__).parents[2] / "config" / "finetuning"
    train = os.path.join(data, "train.tsv")
    hours = 0.0
    if os.path.isfile(train):
        hours = sum(read_manifest(train).num_samples) / cfg.task.sample_rate / 3600
    return Recipe(
        path=setup.path,
        data=data,
        valid_subset=setup.subset,
        config_dir=str(config_dir) if config_dir.is_dir() else "config/finetuning",
        user_dir=_user_dir(args),
        normalize=bool(cfg.task.normalize),
        hours=hours,
        has_gpu=torch.cuda.is_available(),
    )


def page_of(bench, lines, best, budget, commands, confirmed, training) -> str:
    """The table and what to do next, in Markdown."""
    measure = bench.scoring.measure if bench.by_labels else "Distance from the model's own text"
    text = [outcome.table(bench, lines), ""]
    text.append(
        f"{measure} over {len(bench.indices)} utterances, {sum(bench.num_words)} words. Time: as a "
        f"fraction of that of the model as it is, in turns with it, on {len(bench.timed)} "
        "utterances; median and range."
    )
    if len(bench.measured) == 1:
        text.append("Nothing but the model as it is was measured: give a longer --time-limit.")
    needed = outcome.words_needed(bench, best, budget)
    if needed is not None:
        text.append(
            f"This set cannot tell a budget of {budget:g} points from chance: it would take about "
            f"{needed} words."
        )
    apart = max(abs(each - 1) for each in bench.noise or [1.0])
    if apart > outcome.NOISE_TO_RANK:
        text.append(
            "The machine was too noisy to rank what is near: the model as it is differed from "
            f"itself by up to {100 * apart:.0f} % in a round."
        )
    text += ["", "Use it:", ""]
    for command, said in zip(commands, confirmed, strict=True):
        text += [f"    {shlex.join(command)}", f"    # {said}"]
    if training:
        text += ["", "What fine-tuning would add, with this model as start and teacher:", ""]
        for command, each in training:
            text += [f"    # {each.share:.2f} of the MACs; {each.expectation}", f"    {command}"]
            if each.then:
                text.append(f"    # then: {each.then}")
    return "\n".join(text) + "\n"
