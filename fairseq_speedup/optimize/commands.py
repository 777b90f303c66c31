"""Commands that use what was found: as they are typed, and tried before they are printed."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from fairseq_speedup.data.manifest import read_manifest
from fairseq_speedup.decoding.options import option
from fairseq_speedup.decoding.results.generated import generate_path
from fairseq_speedup.optimize import outcome
from fairseq_speedup.optimize.bench import Bench, Measured
from fairseq_speedup.optimize.candidates import Candidate
from fairseq_speedup.optimize.outcome import MODEL
from fairseq_speedup.optimize.setup import Setup, plugin_folder

RESULTS = "results"


def commands_of(
    args, folder: Path, setup: Setup, best: Measured, in_torch: Measured
) -> list[list[str]]:
    """To use the result: on the split (where there is one), and on a file."""
    user_dir = plugin_folder(args.user_dir)
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
