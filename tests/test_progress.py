"""What commands show on a terminal while they work, and that nothing of it is written elsewhere."""

import contextlib
import io
import os
import sys

import pytest
from helpers.corpora import LETTERS, write_arpa, write_dictionary, write_split
from helpers.models import write_finetuned
from helpers.processes import programs
from helpers.results import write_results

from fairseq_speedup.__main__ import main
from fairseq_speedup.commands import COMMANDS
from fairseq_speedup.console import progress
from fairseq_speedup.transcription import transcribe

pytestmark = pytest.mark.filterwarnings("error::tqdm.TqdmWarning")  # such as of a total too small
QUICK = {"lexicon", "merge"}


@pytest.fixture(autouse=True)
def everything_is_drawn(monkeypatch):
    """However quick the machine is."""
    monkeypatch.setattr(progress, "AFTER_SECONDS", 0)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pretrained):
    """With a model that has exits, its data, a language model and results."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "valid"):
        write_split(folder, split, 3)
    dictionary = write_dictionary(folder)
    write_finetuned(folder / "model.pt", pretrained, dictionary)
    write_finetuned(folder / "exits.pt", pretrained, dictionary, exit_layers="0")
    write_finetuned(folder / "gates.pt", pretrained, dictionary, prune_target=0.9)
    write_arpa(folder / "letters.arpa", LETTERS)
    write_results(folder / "runs/full", 0.1)
    write_results(folder / "runs/half", 0.2)
    return folder


WORDS = {
    "calibrate": (
        ["calibrate", "{}", "--cpu", "--path", "{}/exits.pt"],
        ["starting PyTorch and fairseq", "reading {}/exits.pt", "running the model on valid"],
    ),
    "convert": (
        ["convert", "{}/model.pt", "{}/out", "--overwrite"],
        ["reading {}/model.pt", "comparing what was written with the source"],
    ),
    "export": (
        ["export", "--path", "{}/model.pt", "--output", "{}/out.onnx", "--overwrite"],
        ["reading {}/model.pt", "recording the graph"],
    ),
    "inspect": (["inspect", "{}/model.pt", "{}/exits.pt"], ["inspecting", "2/2"]),
    "optimize": (
        [
            *("optimize", "{}/model.pt", "--audio", "{}/audio", "--output", "{}/faster"),
            *("--time-limit", "0.1"),
        ],
        ["measuring the model as it is", "trying the commands", "1/1"],
    ),
    "profile": (
        ["profile", "--arch", "base", "--seconds", "0.1", "--time", "2", "--cpu"],
        ["making the model", "counting multiply-accumulates", "timing", "2/2"],
    ),
    "low-rank": (
        ["low-rank", "{}/model.pt", "--audio", "{}/audio", "--output", "{}/low.pt", "--cpu"],
        ["reading {}/model.pt", "looking at layers"],
    ),
    "prune": (
        ["prune", "{}/gates.pt", "--output", "{}/cut.pt", "--any-share"],
        ["reading {}/gates.pt"],
    ),
    "widths": (
        [
            *("widths", "{}/model.pt", "--widths", "0.9", "--audio", "{}/audio"),
            *("--output", "{}/ordered.pt", "--cpu"),
        ],
        ["reading {}/model.pt", "measuring importance"],
    ),
    "report": (["report", "{}/runs"], ["reading results", "comparing, test", "0/2", "drawing"]),
    "spm": (["spm", "{}", "--vocab-size", "14", "--overwrite"], ["finding pieces of words"]),
    "transcribe": (
        ["transcribe", "--cpu", "--path", "{}/model.pt", "{}/audio"],
        ["reading {}/model.pt", "100%"],
    ),
    "tune-lm": (
        [
            *("tune-lm", "{}", "--path", "{}/model.pt", "--kenlm-model", "{}/letters.arpa"),
            *("--lexicon-free", "--gen-subset", "valid", "--beam", "2", "--rounds", "0", "--cpu"),
        ],
        ["reading {}/model.pt", "running the model on valid"],
    ),
}


def test_every_command_that_takes_its_time_is_here():
    assert set(WORDS) == set(COMMANDS) - QUICK


@pytest.mark.parametrize("command", WORDS)
def test_a_terminal_shows_what_is_done(command, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(programs() / "python"))  # what it starts is forked
    words, expected = (
        [each.replace("{}", str(folder)) for each in both] for both in WORDS[command]
    )
    with contextlib.redirect_stderr(Terminal()) as terminal:
        # layers as narrow as these are of no low rank
        assert main(words) == (command == "low-rank"), terminal.getvalue()
    for each in expected:
        assert each in terminal.getvalue()
    assert "\r" not in capsys.readouterr().out


def test_more_audio_than_files_say_of_themselves(folder, monkeypatch):
    monkeypatch.setattr(transcribe, "duration", lambda path: 0.1)
    words = [each.replace("{}", str(folder)) for each in WORDS["transcribe"][0]]
    with contextlib.redirect_stderr(Terminal()) as terminal:
        assert main(words) == 0
    assert "100%" in terminal.getvalue()


def test_elsewhere_nothing_is_written(capsys):
    with progress.step("thinking"):
        assert list(progress.bar([1, 2], "counting", delay=0)) == [1, 2]
    assert capsys.readouterr().err == ""
    with progress.step("thinking", to_logs=True):
        assert capsys.readouterr().err == "thinking ...\n"
    assert capsys.readouterr().err == ""


def test_a_terminal_that_does_not_say_its_size_has_bars_too():
    ours, theirs = os.openpty()  # of no columns and no rows
    os.set_blocking(ours, False)  # nothing there is an error
    with open(theirs, "w") as terminal, contextlib.redirect_stderr(terminal):
        list(progress.bar([1, 2], "counting", delay=0))
        shown = os.read(ours, 10000).decode()
    os.close(ours)
    assert "counting: " in shown and "2/2" in shown


def test_it_is_taken_away():
    with contextlib.redirect_stderr(Terminal()) as terminal, progress.step("thinking"):
        assert terminal.getvalue().rstrip().endswith("thinking ...")
    assert terminal.getvalue().endswith("\r")
    assert terminal.getvalue().split("\r")[-2].strip() == ""
