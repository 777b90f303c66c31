"""fairseq's commands as a user gives them: forked, in this process, or as a program of its own."""

import os
import subprocess
import sys
from pathlib import Path

from fairseq import options as fairseq_options
from fairseq_cli.generate import main as fairseq_generate

import fairseq_speedup

from .processes import run_forked

REPO = Path(__file__).parents[2]
USER_DIR = Path(fairseq_speedup.__file__).parent


def run_command(*command, cwd=None, check=True, env=None) -> subprocess.CompletedProcess:
    """Runs a command as a user would; its output is in the error when it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        raise AssertionError(f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def prune_command(path, speech, output, *options) -> list[str]:
    """The words of ``prune`` by what some audio shows, on a CPU."""
    words = ["prune", path, "--audio", speech, "--output", output, "--cpu", *options]
    return list(map(str, words))


def fairseq_command(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def train(folder: Path, data: Path, w2v_path: Path, *overrides, config="base_100h", check=True):
    """``fairseq-hydra-train`` on CPU, a few updates, outputs in ``folder``.

    Args:
        config: of config/finetuning
    """
    return run_forked(
        "fairseq-hydra-train",
        "--config-dir",
        REPO / "config/finetuning",
        "--config-name",
        config,
        f"common.user_dir={USER_DIR}",
        "common.cpu=true",
        "common.fp16=false",
        "common.log_interval=1",
        f"task.data={data}",
        "task.normalize=true",
        f"model.w2v_path={w2v_path}",
        "model.apply_mask=false",
        "model.mask_channel_prob=0",
        "model.layerdrop=0",
        "dataset.valid_subset=valid",
        "dataset.num_workers=0",
        "dataset.max_tokens=60000",
        "distributed_training.distributed_world_size=1",
        "optimization.update_freq=[1]",
        "optimization.max_update=4",
        f"hydra.run.dir={folder}",
        f"checkpoint.save_dir={folder}/checkpoints",
        *overrides,
        check=check,
    )


def last_checkpoint(folder: Path) -> Path:
    """Of a :func:`train` into ``folder``."""
    return folder / "checkpoints/checkpoint_last.pt"


def log_of(folder: Path) -> str:
    """Of a :func:`train` into ``folder``."""
    return (folder / "hydra_train.log").read_text()


def decoding_arguments(data: Path, checkpoint: Path, results: Path | None, *options) -> list[str]:
    """What follows ``fairseq-generate``."""
    arguments = [data, "--user-dir", USER_DIR, "--task", "speedup_finetuning", "--cpu"]
    arguments += ["--path", checkpoint, "--gen-subset", "test", "--labels", "ltr"]
    arguments += ["--scoring", "wer", "--post-process", "letter"]
    arguments += ["--results-path", results] if results else []
    return [str(each) for each in [*arguments, *options]]


def generate(data: Path, checkpoint: Path, results: Path | None = None, *options, check=True):
    """Stock ``fairseq-generate`` with this plugin."""
    arguments = decoding_arguments(data, checkpoint, results, *options)
    return run_forked("fairseq-generate", *arguments, check=check)


def generate_here(data: Path, checkpoint: Path, results: Path | None = None, *options):
    """As :func:`generate`, in this process: quicker, and raises what fairseq-generate dies of."""
    here = ["--num-workers", "0", "--no-progress-bar"]
    return generate_with(*decoding_arguments(data, checkpoint, results, *here, *options))


def generate_with(*arguments):
    """``fairseq-generate`` in this process, with these arguments alone."""
    return fairseq_generate(parse_generation(*arguments))


def parse_generation(*arguments):
    """What ``fairseq-generate`` makes of its arguments."""
    parser = fairseq_options.get_generation_parser()
    parser.add_argument("--arch", default="wav2vec2")  # as fairseq-generate itself
    return fairseq_options.parse_args_and_arch(parser, list(map(str, arguments)))
