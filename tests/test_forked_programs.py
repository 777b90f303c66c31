"""Programs that the tests fork end as those that Python starts, and with whoever asked for them."""

import subprocess

import pytest
from helpers.processes import programs, run_forked


@pytest.mark.parametrize(
    ("code", "status", "out", "error"),
    [
        ("print('said')", 0, "said\n", ""),
        ("import sys; sys.exit('in words')", 1, "", "in words\n"),
        ("import sys; sys.exit(3)", 3, "", ""),
        ("import os; os.kill(os.getpid(), 9)", -9, "", ""),
        ("import atexit; atexit.register(print, 'last'); print('first')", 0, "first\nlast\n", ""),
    ],
)
def test_they_end_as_others_do(code, status, out, error, tmp_path):
    (tmp_path / "program.py").write_text(code)
    for words in (["-c", code], [tmp_path / "program.py"]):
        done = run_forked(*words, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (status, out, error)


def test_an_error_has_its_traceback_and_each_program_is_alone(tmp_path):
    with pytest.raises(AssertionError, match=r"(?s)Traceback.*ZeroDivisionError"):
        run_forked("-c", "import sys; sys.modules['torch'].mark = 1; 1 / 0")
    code = "import os, sys, torch; print(sys.argv, os.getcwd(), hasattr(torch, 'mark'))"
    found = run_forked("-c", code, "a b", cwd=tmp_path).stdout
    assert found == f"['-c', 'a b'] {tmp_path} False\n"


def test_a_program_ends_with_whoever_started_it(tmp_path):
    """And what it has started too: nobody comes to the end."""
    (tmp_path / "program.py").write_text(
        "import subprocess, time\n"
        "subprocess.Popen(['sh', '-c', 'sleep 20; echo end'])\n"
        "print('started', flush=True)\ntime.sleep(20)\nprint('end')\n"
    )
    command = [programs() / "python", tmp_path / "program.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.kill()
    process.wait()
    assert process.stdout.read() == ""  # once nobody can write any more
