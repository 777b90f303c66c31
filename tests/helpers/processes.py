"""A fresh Python for every program without importing torch and fairseq each time, which takes
longer than most programs here: a server that has imported them, and has run nothing, forks."""

import functools
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from . import forks

# Python takes a moment to start where it looks for no packages
CALLER = """#!{python} -IS
import os, sys
sys.path.insert(0, {helpers!r})
from forks import SCRIPTS, call
name, *words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
program = name in SCRIPTS or words[:1] == ["-m"] or words[:2] == ["-W", "ignore"]
if program or words and words[0].endswith(".py"):
    words = [sys.argv[0], *words] if name in SCRIPTS else words
    sys.exit(call({socket!r}, words, os.getcwd(), dict(os.environ), [0, 1, 2]))
os.execv({python!r}, [{python!r}, *words])
"""


@functools.cache
def programs() -> Path:
    """A folder with ``python`` and the console scripts, which the server forks for whoever starts
    them; it is begun here. Other programs of theirs find them beside ``sys.executable``."""
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    descriptor = listener.fileno()
    command = [sys.executable, forks.__file__, str(descriptor), str(folder)]
    # its standard input ends with this process
    programs.server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[descriptor])
    listener.close()
    for name in ("python", *forks.SCRIPTS):
        text = CALLER.format(
            python=sys.executable,
            helpers=str(Path(forks.__file__).parent),
            socket=str(folder / "socket"),
        )
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def run_forked(
    *command, cwd=None, check=True, env: dict | None = None
) -> subprocess.CompletedProcess:
    """Runs a console script or what ``python`` takes, a file, ``-m`` and a module or ``-c`` and
    code, with its arguments; its output is in the error when it fails."""
    words = [str(word) for word in command]
    path = str(programs() / "socket")
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        with open(os.devnull) as stdin:
            descriptors = [each.fileno() for each in (stdin, stdout, stderr)]
            cwd = os.path.abspath(cwd or os.getcwd())
            status = forks.call(path, words, cwd, {**os.environ, **(env or {})}, descriptors)
        stdout.seek(0)
        stderr.seek(0)
        done = subprocess.CompletedProcess(words, status, stdout.read(), stderr.read())
    if check and status:
        raise AssertionError(f"{words} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done
