"""A fresh Python for every command without importing torch and fairseq each time: a server that
has imported them, and has run nothing, forks. That import takes longer than most commands here."""

import multiprocessing
import os
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

# the last is what torch's attention imports when it runs first
PRELOADED = [
    "fairseq_cli.generate",
    "fairseq_cli.hydra_train",
    "fvcore.nn",
    "soundfile",
    "torch.fx.experimental.symbolic_shapes",
]
SCRIPTS = {  # as the environment's console scripts have them
    "fairseq-generate": "fairseq_cli.generate:cli_main",
    "fairseq-hydra-train": "fairseq_cli.hydra_train:cli_main",
    "fairseq-speedup": "fairseq_speedup.commands:main",
}
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def run_forked(
    *command, cwd=None, check=True, env: dict | None = None
) -> subprocess.CompletedProcess:
    """Runs one of SCRIPTS with its arguments; its output is in the error when it fails."""
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/stdout", f"{folder}/stderr"]
        process = _context.Process(target=_console_script, args=(words, paths, cwd, env))
        process.start()
        process.join()
        stdout, stderr = (Path(path).read_text() for path in paths)
    if check and process.exitcode:
        raise AssertionError(f"{words} failed:\n{stdout[-4000:]}\n{stderr[-4000:]}")
    return subprocess.CompletedProcess(words, process.exitcode, stdout, stderr)


def _console_script(words, paths, cwd, env) -> None:
    for descriptor, path in zip((1, 2), paths, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.update(env or {})
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = words
    try:
        status = pkgutil.resolve_name(SCRIPTS[words[0]])()
    except Exception:  # as Python ends a script; multiprocessing asks no hook
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.exit(status)
