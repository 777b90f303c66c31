"""What fairseq's commands end with where this package refuses something, and where it does not."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile
from helpers.commands import USER_DIR, generate, train
from helpers.processes import run_forked

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.console.refusals import is_refusal, reason, within
from fairseq_speedup.registry import Registry

FULL = {"HYDRA_FULL_ERROR": "1"}


def last_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_decoding_ends_with_the_message_alone(corpus, tmp_path):
    done = generate(corpus, tmp_path, check=False)
    assert last_line(done).startswith(
        "fairseq_speedup.checkpoints.opening.CheckpointError: "
        f"{tmp_path} is a folder without config.json"
    )
    assert "Traceback" not in done.stderr


def test_what_loads_data_in_a_process_of_its_own_ends_with_the_message_alone(
    corpus, model, tmp_path
):
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    manifest = (data / "test.tsv").read_text().splitlines()
    name = manifest[1].split("\t")[0]
    broken = tmp_path / "other_rate.wav"
    soundfile.write(broken, soundfile.read(Path(manifest[0]) / name)[0], 44100)
    lines = [manifest[0], manifest[1].replace(name, str(broken)), *manifest[2:]]
    (data / "test.tsv").write_text("\n".join(lines) + "\n")
    done = generate(data, model, tmp_path, "--num-workers", "1", check=False)
    assert re.fullmatch(
        r"fairseq_speedup.data.audio.BadUtteranceError: test: utterance 0 .*other_rate.wav\): its "
        "sample rate is 44100 Hz; task.sample_rate=16000 is needed",
        last_line(done),
    )
    assert "Traceback" not in done.stderr


def test_training_ends_with_the_message_alone(corpus, tmp_path):
    done = train(tmp_path, corpus, "/lost.pt", check=False)
    assert last_line(done).startswith("FileNotFoundError: model.w2v_path=/lost.pt: no such file")
    assert "Traceback" not in done.stderr
    assert "Error executing job with overrides" in done.stderr


def test_all_of_it_is_there_for_who_asks(corpus, tmp_path):
    words = [corpus, "--user-dir", USER_DIR, "--task", "speedup_finetuning", "--path", tmp_path]
    done = run_forked("fairseq-generate", *words, env=FULL, check=False)
    assert "is a folder without config.json" in last_line(done)
    assert "Traceback (most recent call last)" in done.stderr
    assert "in load_checkpoint_to_cpu" in done.stderr


def test_what_fairseq_and_hydra_say_is_left_to_them(corpus, pretrained, tmp_path):
    done = train(tmp_path, corpus, pretrained, "optimizer.adam_betas=x", check=False)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "in hydra_main" in done.stderr and "in run_job" not in done.stderr  # as Hydra prints it
    assert last_line(done) == (
        "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
    )
    done = generate(corpus, tmp_path, None, "--no-such-option", check=False)
    assert "unrecognized arguments: --no-such-option" in done.stderr


def raised(function, *arguments) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def _raise(error):
    raise error


def defined_here(code: str):
    """A function of a module of this package."""
    namespace = {"__name__": "fairseq_speedup.somewhere"}
    exec(f"def function():\n    {code}", namespace)
    return namespace["function"]


@pytest.mark.parametrize(
    ("function", "arguments", "refused"),
    [
        (_raise, [CheckpointError("of our kind, in a package of the user's")], True),
        (Registry("shape").lookup, ["round"], True),
        (defined_here("raise ValueError('in words')"), [], True),
        (defined_here("raise FileNotFoundError('in words')"), [], True),
        (defined_here("float('x')"), [], False),  # a mistake in this package
        (defined_here("raise KeyError('x')"), [], False),
        (_raise, [ValueError("from elsewhere")], False),
    ],
)
def test_which_errors_are_refusals(function, arguments, refused):
    assert is_refusal(raised(function, *arguments)) == refused


@pytest.mark.parametrize(
    ("error", "first", "whole"),
    [
        (ValueError("\n two  words\n and more\n"), "two words", "two words and more"),
        (MemoryError(), "MemoryError", "MemoryError"),
        (OSError(" \n"), "OSError", "OSError"),
    ],
)
def test_an_error_without_words_is_told_by_its_kind(error, first, whole):
    assert (reason(error), reason(error, whole=True)) == (first, whole)


@pytest.mark.parametrize("most", [20, 21, 22, 30, 60])
def test_what_is_long_ends_after_a_word(most):
    words = "one two three, four. five sixsixsix seven eight nine"
    short = within(words, most)
    assert len(short) <= most
    if most < len(words):
        kept = short.removesuffix(" ...")
        assert short != kept and words.startswith(kept)
        assert words[len(kept)] in " .,"
    else:
        assert short == words
    assert within(30 * "x", 20) == 16 * "x" + " ..."
    assert reason(ValueError(words), most=12) == "one two ..."


def test_other_programs_keep_their_errors():
    code = "import fairseq_speedup, os, sys\n"
    code += "assert sys.excepthook is sys.__excepthook__ and 'HYDRA_FULL_ERROR' not in os.environ"
    run_forked("-c", code)
