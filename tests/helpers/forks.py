"""The server that forks programs: python forks.py LISTENING_DESCRIPTOR FOLDER

It has imported torch and fairseq and has run nothing. Each connection asks for one program, gives
it standard input, output and error, and is told its exit status; where it ends before, the program
is killed with all that it has started. The server ends with its standard input.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import types
import warnings

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


def call(path: str, words: list[str], cwd: str, env: dict, descriptors) -> int:
    """Asks the server at a socket for a program; its exit status."""
    message = json.dumps({"words": words, "cwd": cwd, "env": env}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [len(message).to_bytes(8, "big")], descriptors)
        connection.sendall(message)
        return int(connection.recv(16))


def serve(listener: socket.socket, folder: str) -> dict | None:
    """In the server None, at its end; in each process that is to become a program what was asked
    for."""
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _supervise(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _supervise(connection: socket.socket) -> dict:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        asked = json.loads(file.read(int.from_bytes(header, "big")))
    ended, ends = socket.socketpair()
    ends.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *unused: None)
    signal.set_wakeup_fd(ends.fileno())
    program = os.fork()
    if program == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ended.close()
        ends.close()
        os.setsid()
        connection.close()
        for standard, descriptor in enumerate(descriptors):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        # whether there is a place to seek in, a stream asks when it is opened
        stream = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
        sys.stdout = open(1, "w", closefd=False, **stream)  # noqa: SIM115
        return asked
    for descriptor in descriptors:
        os.close(descriptor)
    if ended not in select.select([ended, connection], [], [])[0]:  # whoever asked is gone
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def become(asked: dict, folder: str) -> int:
    """Runs a program as Python does that is started for it alone; its exit status."""
    try:
        _run(asked, folder)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _run(asked: dict, folder: str) -> None:
    words = asked["words"]
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    if "torch" in sys.modules and os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.executable = os.path.join(folder, "python")  # beside it, the scripts that call this server
    for place in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if place and place not in sys.path:
            sys.path.insert(0, place)
    while words[0].startswith("-W"):
        action = words.pop(0)[2:] or words.pop(0)
        warnings.simplefilter(action)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(words[1], vars(module))
        return
    sys.argv = words
    sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
    if words[0].endswith(".py"):
        runpy.run_path(words[0], run_name="__main__")
        return
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.exit(pkgutil.resolve_name(SCRIPTS[os.path.basename(words[0])])())


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    with warnings.catch_warnings(action="ignore"):
        for name in PRELOADED:
            importlib.import_module(name)
    gc.freeze()  # programs share what is not touched
    folder = sys.argv[2]
    asked = serve(socket.socket(fileno=int(sys.argv[1])), folder)
    if asked is not None:
        os._exit(become(asked, folder))  # to free all that was imported takes longer than most
