"""transcribe of folders, globs and standard input, into files."""

import io
import itertools
import json
import os
import re
import shutil
import sys

import pytest
import soundfile
from helpers.corpora import SAMPLE_RATE, write_split
from hypothesis import given
from hypothesis import strategies as st

from fairseq_speedup.__main__ import main
from fairseq_speedup.data.find_recordings import Found, find_recordings
from fairseq_speedup.data.recording import RecordingError, read_recording
from fairseq_speedup.decoding.results.timestamps import TimedWord
from fairseq_speedup.transcription.subtitles import (
    LINE_CHARACTERS,
    LONGEST,
    as_srt,
    as_vtt,
    cues_of,
)

FORMATS = "text,json,srt,vtt,ctm"
ENDINGS = [".txt", ".json", ".srt", ".vtt", ".ctm"]


# -- what is found ---------------------------------------------------------------------------------


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(*given) -> list[tuple[str, str]]:
    return [(each.path, each.name) for each in find_recordings([str(each) for each in given])]


def test_a_folder_is_its_audio_files_and_those_of_its_sub_folders(tmp_path):
    touch(tmp_path, "b/2.FLAC", "b/c/3.sph", "a.wav", "notes.txt", "b/4.raw", ".x/5.wav", "._6.wav")
    names = {"a.wav": "a", "b/2.FLAC": "b/2", "b/c/3.sph": "b/c/3"}
    assert found(tmp_path) == [(str(tmp_path / path), name) for path, name in names.items()]


def test_links_to_folders_are_followed_and_end(tmp_path):
    touch(tmp_path, "real/1.wav", "talks/2.wav")
    (tmp_path / "talks/more").symlink_to(tmp_path / "real")
    (tmp_path / "talks/again").symlink_to(tmp_path / "talks")
    assert [name for _, name in found(tmp_path / "talks")] == ["2", "more/1"]


def test_a_glob_that_no_shell_expanded_is(tmp_path, monkeypatch):
    touch(tmp_path, "x/1.wav", "x/1.txt", "y/2.wav", "y/z/3.wav", "y/[4].wav")
    monkeypatch.chdir(tmp_path)
    assert found("*/*.wav") == [("x/1.wav", "x/1"), ("y/2.wav", "y/2"), ("y/[4].wav", "y/[4]")]
    assert found("y/**") == [("y/2.wav", "2"), ("y/[4].wav", "[4]"), ("y/z/3.wav", "z/3")]
    assert found("x/*") == [("x/1.wav", "1")]
    assert found("y/[4].wav") == [("y/[4].wav", "[4]")]  # a file of that name is that file


def test_names_do_not_clash(tmp_path, monkeypatch):
    touch(tmp_path, "x/1.wav", "y/1.wav", "y/2.wav", "y/2.flac")
    monkeypatch.chdir(tmp_path)
    assert [name for _, name in found("x", "y")] == ["x/1", "y/1", "y/2.flac", "y/2.wav"]
    assert [name for _, name in found("y/1.wav", "x/1.wav")] == ["y/1", "x/1"]
    assert [name for _, name in found("y/1.wav", "-")] == ["1", "stdin"]
    touch(tmp_path, "y/2.flac.wav")
    assert len({name for _, name in found("y")}) == 4
    assert find_recordings(["lost.wav"]) == [Found("lost.wav", "lost")]  # told when it is read
    assert [path for path, _ in found("lost*.wav", "x/1.wav")] == ["lost*.wav", "x/1.wav"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["empty"], "empty and its sub-folders have no audio file: their names end in .aif "),
        (["*.mp3"], r"\*.mp3 matches nothing"),
        (["*.txt"], r"\*.txt matches no audio file, but notes.txt: their names end in .aif "),
        (["-", "-"], "- is given twice"),
    ],
)
def test_what_finds_nothing_is_refused(tmp_path, monkeypatch, given, words):
    touch(tmp_path, "notes.txt", "empty/more/read.me")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        find_recordings(given)


def test_what_is_given_twice_is_taken_once_and_said(tmp_path, monkeypatch, capsys):
    touch(tmp_path, "x/1.wav", "x/2.wav", "y/1.wav")
    monkeypatch.chdir(tmp_path)
    assert found("x/2.wav", "./x/2.wav") == [("x/2.wav", "2")]
    assert capsys.readouterr().err == (
        "note: given more than once, taken once: x/2.wav (1 in all)\n"
    )
    names = ["x/1", "x/2", "y/1"]
    assert found("x", "y/1.wav", "*/*.wav") == [(f"{name}.wav", name) for name in names]
    assert "x/1.wav, x/2.wav, y/1.wav (3 in all)" in capsys.readouterr().err
    found("x", "y", "-")
    assert capsys.readouterr().err == ""


def test_audio_that_cannot_be_read_is_counted(tmp_path, monkeypatch, capsys):
    touch(tmp_path, "x/1.wav", "x/my talk.m4a", "x/z/3.WMA", "x/read.me", "y/4.mp4")
    monkeypatch.chdir(tmp_path)
    for where in ("x", "x/**"):
        assert [path for path, _ in found(where)] == ["x/1.wav"]
        assert capsys.readouterr().err == (
            "note: passed over, as libsndfile cannot read it: x/my talk.m4a, x/z/3.WMA (2 in all); "
            "ffmpeg -i 'x/my talk.m4a' 'my talk.flac' makes one that can be read\n"
        )
    for where in ("y", "y/*"):
        words = "no audio file that libsndfile reads, but others, such as y/4.mp4; ffmpeg -i y/4"
        with pytest.raises(ValueError, match=words):
            find_recordings([where])
    (tmp_path / "y/4.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(RecordingError, match=r"y/4.mp4 cannot .*; ffmpeg -i y/4.mp4 4.flac makes"):
        read_recording("y/4.mp4", SAMPLE_RATE, normalize=True)


# -- subtitles -------------------------------------------------------------------------------------


def words_at(*timed) -> list[TimedWord]:
    return [TimedWord(*each) for each in timed]


def test_subtitles_in_both_forms():
    words = words_at(("AT", 0.5, 0.8), ("<LAST", 0.9, 2.0), ("YES", 3600.0, 3600.2))
    cues = cues_of(words, duration=3600.75)
    assert as_srt(cues) == (
        "1\n00:00:00,500 --> 00:00:02,000\nAT <LAST\n\n2\n01:00:00,000 --> 01:00:00,750\nYES\n"
    )
    assert as_vtt(cues) == (
        "WEBVTT\n"
        "\n00:00:00.500 --> 00:00:02.000\nAT &lt;LAST\n"
        "\n01:00:00.000 --> 01:00:00.750\nYES\n"
    )
    assert (as_srt([]), as_vtt([])) == ("", "WEBVTT\n")
    assert "00:01:00,000 -->" in as_srt(cues_of(words_at(("A", 59.9996, 61.5)), 70))


def test_a_cue_ends_at_a_pause_and_a_long_one_where_it_pauses_longest():
    apart = words_at(("ONE", 0, 0.4), ("TWO", 0.5, 0.9), ("THREE", 1.7, 2.9))
    assert [cue.lines for cue in cues_of(apart, 9)] == [["ONE TWO"], ["THREE"]]
    steady = [TimedWord("WORDS", 0.5 * n, 0.5 * n + 0.45) for n in range(20)]  # 10 s, 119 letters
    for word in steady[8:]:
        word.start += 0.3
        word.end += 0.3
    first, second = [" ".join(cue.lines) for cue in cues_of(steady, 20)]
    assert (len(first.split()), len(second.split())) == (8, 12)


def test_two_lines_are_as_equal_as_can_be():
    text = "A SENTENCE OF TEN WORDS WHICH IS TOO LONG HERE"
    words = [TimedWord(word, n * 0.3, n * 0.3 + 0.2) for n, word in enumerate(text.split())]
    (cue,) = cues_of(words, 9)
    assert cue.lines == ["A SENTENCE OF TEN WORDS", "WHICH IS TOO LONG HERE"]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 60), st.floats(0, 3, allow_nan=False), st.floats(0, 1, allow_nan=False)
        ),
        max_size=80,
    )
)
def test_limits_of_subtitles_hold_and_no_word_is_lost(spec):
    words, time = [], 0.0
    for length, seconds, pause in spec:
        words.append(TimedWord("W" * length, time, time + seconds))
        time += seconds + pause
    cues = cues_of(words, time)
    assert " ".join(" ".join(cue.lines) for cue in cues).split() == [each.word for each in words]
    for cue in cues:
        assert 1 <= len(cue.lines) <= 2
        if len(" ".join(cue.lines).split()) > 1:
            assert max(map(len, cue.lines)) <= LINE_CHARACTERS
            assert cue.end - cue.start <= LONGEST
        assert cue.start <= cue.end
    assert all(before.end <= after.start for before, after in itertools.pairwise(cues))


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def talks(tmp_path):
    """A folder with two recordings, one in a sub-folder."""
    write_split(tmp_path / "made", "test", 2, seed=1)
    for index, path in enumerate(["talks/a talk.wav", "talks/more/b.wav"]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / f"made/audio/test-{index}.wav", tmp_path / path)
    return tmp_path / "talks"


def transcribe(capsys, *arguments) -> tuple[str, str, int]:
    """Standard output, standard error and exit status."""
    capsys.readouterr()
    status = main(["transcribe", "--cpu", *map(str, arguments)])
    written = capsys.readouterr()
    return written.out, written.err, status


def files_of(folder) -> dict[str, int]:
    """When each file was written, by its path below ``folder``; of those that are to be seen."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_each_recording_gets_a_file_of_each_format(model, talks, tmp_path, capsys):
    out = tmp_path / "new/texts"
    printed, errors, status = transcribe(
        capsys, "--path", model, talks, "--output-dir", out, "--format", FORMATS
    )
    assert (printed, status) == ("", 0)
    names = {"a talk": talks / "a talk.wav", "more/b": talks / "more/b.wav"}
    assert files_of(out).keys() == {f"{name}{end}" for name in names for end in ENDINGS}
    seconds = sum(soundfile.info(path).duration for path in names.values())
    summary = rf"transcribed 2 files, {seconds / 3600:.3f} hours of audio, real-time factor "
    assert re.fullmatch(summary + r"\d+\.\d{4}, 0 failed", errors.strip())
    lines, _, _ = transcribe(capsys, "--path", model, "--json", talks)
    for line, (name, path) in zip(lines.splitlines(), names.items(), strict=True):
        expected = json.loads(line)
        assert expected["audio"] == str(path)
        assert expected["text"]
        assert (out / f"{name}.json").read_text() == line + "\n"
        assert (out / f"{name}.txt").read_text() == expected["text"] + "\n"
        words = expected["words"]
        rows = [row.split(" ") for row in (out / f"{name}.ctm").read_text().splitlines()]
        assert [row[:2] + row[4:] for row in rows] == [
            [name.replace(" ", "_"), "1", each["word"]] for each in words
        ]
        assert [float(row[2]) for row in rows] == [each["start"] for each in words]
        srt, vtt = ((out / f"{name}.{end}").read_text() for end in ("srt", "vtt"))
        cues = re.findall(r"\d+\n\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}\n(.*(?:\n.+)?)", srt)
        assert " ".join(cues).replace("\n", " ") == expected["text"]
        assert vtt.startswith("WEBVTT\n\n00:00:0")


def test_what_is_finished_is_left_out_until_it_is_older(model, talks, tmp_path, capsys):
    out = tmp_path / "texts"
    options = ["--path", model, talks, "--output-dir", out, "--format", "text,ctm"]
    transcribe(capsys, *options)
    first = files_of(out)
    _, errors, status = transcribe(capsys, *options)
    assert status == 0
    assert files_of(out) == first
    assert errors.startswith("transcribed 0 files, 0.000 hours of audio, 0 failed, 2 finished befo")

    (out / "more/b.ctm").unlink()  # one format of one recording
    _, errors, _ = transcribe(capsys, *options)
    assert "transcribed 1 file," in errors and "1 finished before" in errors
    second = files_of(out)
    assert second.keys() == first.keys()
    assert second["a talk.txt"] == first["a talk.txt"]

    later = max(second.values()) + 10**9
    os.utime(talks / "a talk.wav", ns=(later, later))
    _, errors, _ = transcribe(capsys, *options)
    assert "transcribed 1 file," in errors
    _, errors, _ = transcribe(capsys, *options, "--overwrite")
    assert "transcribed 2 files," in errors and "finished before" not in errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--path", "other.pt"], "path is {0}/model.pt, {1} bytes, written .* and {0}/other.pt, "),
        (["--inference", "fp32"], "inference is auto there and fp32 now"),
        (["--model-overrides", "{'frame_pool': 2}"], "model_overrides is not given there and {'fr"),
        (["--ctc-decoder", "beam"], "ctc_decoder is greedy there and beam now"),
        (["--window-seconds", "8"], "window_seconds is 30.0 there and 8.0 now"),
    ],
    ids=str,
)
def test_texts_of_another_run_are_not_taken_for_finished(
    model, talks, tmp_path, capsys, monkeypatch, options, words
):
    for name in ("model.pt", "other.pt"):
        shutil.copy(model, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "texts"
    command = [talks, "--output-dir", "texts", "--path", "model.pt"]
    transcribe(capsys, *command)
    first = files_of(out)
    _, errors, status = transcribe(capsys, *command, *options)
    assert status == 1
    size = os.path.getsize("model.pt")
    words = words.replace("{0}", str(tmp_path)).replace("{1}", str(size))
    assert re.search(f"--output-dir texts has texts of another run: {words}", errors)
    assert "give --overwrite to replace them, or another folder" in errors
    assert files_of(out) == first
    _, errors, _ = transcribe(capsys, *command, "--batch-size", 2)  # what changes no text
    assert "2 finished before" in errors

    _, errors, status = transcribe(capsys, *command, *options, "--overwrite")
    assert "transcribed 2 files," in errors
    _, errors, _ = transcribe(capsys, *command, *options)
    assert "2 finished before" in errors
    assert "has texts of another run" in transcribe(capsys, *command)[1]


def test_what_is_replaced_in_part_is_finished_in_part(model, talks, tmp_path, capsys):
    out = tmp_path / "texts"
    command = ["--path", model, "--output-dir", out]
    transcribe(capsys, *command, talks)
    command += ["--ctc-decoder", "beam"]
    transcribe(capsys, *command, talks / "more/../a talk.wav", "--overwrite")
    _, errors, _ = transcribe(capsys, *command, talks)
    assert "transcribed 1 file," in errors and "1 finished before" in errors


def test_a_folder_of_an_earlier_version_goes_on(model, talks, tmp_path, capsys):
    out = tmp_path / "texts"
    record = out / ".transcribed.json"
    command = ["--path", model, talks, "--output-dir", out]
    transcribe(capsys, *command)
    (out / ".transcribed.jsonl").unlink()  # which earlier ones had not
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sources": None}))
    (out / "more/b.txt").unlink()
    for expected in ("transcribed 1 file,", "transcribed 0 files,"):
        _, errors, status = transcribe(capsys, *command)
        assert status == 0 and expected in errors
    record.write_text("[")
    assert "path is not given there and" in transcribe(capsys, *command)[1]


def test_what_nobody_recorded_is_neither_finished_nor_replaced(model, talks, tmp_path, capsys):
    out = tmp_path / "texts"
    (out / "more").mkdir(parents=True)
    theirs = out / "more/b.txt"
    theirs.write_text("a transcript by hand")
    command = ["--path", model, talks, "--output-dir", out]
    for when in (1e9, None):  # older than the recording, and newer
        os.utime(theirs, when and (when, when))
        _, errors, status = transcribe(capsys, *command)
        assert status == 1
        words = "was written by no run that is recorded there, and .*/more/b.wav would have that"
        assert re.search(f"{theirs} {words} name: give another --output-dir, or --ov", errors)
    assert files_of(out).keys() == {"more/b.txt"}
    assert theirs.read_text() == "a transcript by hand"
    _, errors, status = transcribe(capsys, *command, "--overwrite")
    assert status == 0 and "transcribed 2 files," in errors
    assert theirs.read_text() != "a transcript by hand"
    assert "2 finished before" in transcribe(capsys, *command)[1]


def test_a_recording_of_the_same_name_is_another_one(model, talks, tmp_path, capsys):
    out = tmp_path / "texts"
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(talks / "more/b.wav", others / "a talk.wav")
    shutil.copy(talks / "more/b.wav", others / "c.wav")
    command = ["--path", model, "--output-dir", out]
    transcribe(capsys, *command, talks)
    first = files_of(out)
    with open(out / ".transcribed.jsonl", "a") as file:
        file.write('\n{"name": "c", "aud')  # cut off
    _, errors, status = transcribe(capsys, *command, others)
    assert status == 1
    assert f"a talk.txt is of {talks}/a talk.wav, and {others}/a talk.wav would" in errors
    assert files_of(out) == first
    _, errors, status = transcribe(capsys, *command, others / "c.wav")  # no name in common
    assert status == 0 and "transcribed 1 file," in errors
    assert "1 finished before" in transcribe(capsys, *command, others / "c.wav")[1]
    _, errors, status = transcribe(capsys, *command, others, "--overwrite")
    assert status == 0 and (out / "a talk.txt").read_text() == (out / "more/b.txt").read_text()
    assert f"a talk.txt is of {others}/a talk.wav, and" in transcribe(capsys, *command, talks)[1]


def test_a_name_that_leaves_no_room_fails_alone(model, talks, tmp_path, capsys):
    out = tmp_path / "texts"
    fits, too_long = 250 * "a", 125 * "\u0430" + "bb"  # bytes: 250 and 252
    for name in (fits, too_long):
        shutil.copy(talks / "more/b.wav", tmp_path / f"{name}.au")
    recordings = [tmp_path / f"{name}.au" for name in (too_long, fits)]
    command = ["--path", model, *recordings, "--output-dir", out]
    _, errors, status = transcribe(capsys, *command)
    assert status == 1 and "transcribed 1 file," in errors and "1 failed" in errors
    assert f"{out}/{too_long}.txt: a name too long for a file" in errors
    assert (out / f"{fits}.txt").exists()
    assert "1 finished before" in transcribe(capsys, *command)[1]


def test_a_language_model_and_a_lexicon_are_looked_at(model, talks, tmp_path, capsys, data):
    pytest.importorskip("flashlight.lib.text")
    lexicon, out = tmp_path / "lexicon.txt", tmp_path / "texts"
    assert main(["lexicon", str(data), "--output", str(lexicon)]) == 0
    command = ["--path", model, talks, "--output-dir", out, "--ctc-decoder", "beam"]
    command += ["--lexicon", lexicon]
    assert transcribe(capsys, *command)[2] == 0
    _, errors, _ = transcribe(capsys, *command, "--decoder-workers", 1)
    assert "2 finished before" in errors
    os.utime(lexicon, (1e9, 1e9))
    assert f"another run: lexicon is {lexicon}, " in transcribe(capsys, *command)[1]


def test_names_that_are_no_utf8_are_printed_as_they_are(model, talks, capsys, monkeypatch):
    path = os.fsencode(talks) + b"/caf\xe9.wav"
    shutil.copy(talks / "more/b.wav", path)
    expected, _, _ = transcribe(capsys, "--path", model, talks / "more/b.wav")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))
    assert main(["transcribe", "--cpu", "--path", str(model), os.fsdecode(path)]) == 0
    sys.stdout.flush()
    assert written.getvalue() == path + b"\t" + expected.split("\t")[1].encode()


def test_a_file_that_fails_is_done_by_the_next_run(model, talks, tmp_path, capsys):
    out, broken = tmp_path / "texts", talks / "c.wav"
    broken.write_text("no audio")
    options = ["--path", model, talks, "--output-dir", out]
    _, errors, status = transcribe(capsys, *options)
    assert status == 1
    assert f"error: {broken} cannot be read as audio" in errors
    assert "transcribed 2 files," in errors and "1 failed" in errors
    assert files_of(out).keys() == {"a talk.txt", "more/b.txt"}
    shutil.copy(talks / "more/b.wav", broken)
    _, errors, status = transcribe(capsys, *options)
    assert status == 0
    assert "transcribed 1 file," in errors and "2 finished before" in errors
    assert (out / "c.txt").read_text() == (out / "more/b.txt").read_text()


def test_standard_output_is_as_before(model, talks, capsys):
    files = [talks / "a talk.wav", talks / "more/b.wav"]
    expected, _, _ = transcribe(capsys, "--path", model, *files)
    assert [line.split("\t")[0] for line in expected.splitlines()] == list(map(str, files))
    assert transcribe(capsys, "--path", model, talks)[0] == expected
    assert transcribe(capsys, "--path", model, f"{talks}/**")[0] == expected


class Stdin:
    """Of a process, with bytes in it that can be read once."""

    def __init__(self, content: bytes, terminal=False):
        self.buffer = io.BytesIO(content)
        self.isatty = lambda: terminal


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_audio_on_standard_input(model, talks, tmp_path, capsys, monkeypatch, form):
    samples, _ = soundfile.read(talks / "more/b.wav", dtype="int16")
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format=form)
    expected, _, _ = transcribe(capsys, "--path", model, talks / "more/b.wav")
    monkeypatch.setattr(sys, "stdin", Stdin(content.getvalue()))
    printed, _, status = transcribe(capsys, "--path", model, "-")
    assert (printed, status) == ("-\t" + expected.split("\t")[1], 0)
    for _ in range(2):  # nothing tells that it is the same
        monkeypatch.setattr(sys, "stdin", Stdin(content.getvalue()))
        _, errors, _ = transcribe(capsys, "--path", model, "-", "--output-dir", tmp_path / "out")
        assert errors.startswith("transcribed 1 file,")
    assert (tmp_path / "out/stdin.txt").read_text() == expected.split("\t")[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "error: standard input is empty"),
        (b"no audio", "error: standard input cannot be read as audio: "),
    ],
)
def test_no_audio_on_standard_input(model, capsys, monkeypatch, content, words):
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    printed, errors, status = transcribe(capsys, "--path", model, "-")
    assert (printed, status) == ("", 1)
    assert words in errors


def test_a_terminal_is_no_audio(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"", terminal=True))
    _, errors, status = transcribe(capsys, "--path", model, "-")
    assert status == 1
    assert "- is audio on standard input, which is a terminal" in errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--output-dir", "out", "--format", "text,txt"],
            "--format txt is unknown; valid values: text, json, srt, vtt, ctm",
        ),
        (["--output-dir", "out", "--format", ""], "--format  is unknown; valid values: text,"),
        (["--format", "srt"], "--format is for the files in a folder: give --output-dir"),
        (["--overwrite"], "--overwrite is for the files in a folder: give --output-dir"),
        (["--output-dir", "out", "--json"], "--json is for standard output: give --format json"),
        (["--output-dir", "file/out"], "/file is no folder"),
        (["--output-dir", "file"], "/file is no folder"),
    ],
)
def test_output_that_makes_no_sense_is_refused(
    model, talks, tmp_path, capsys, monkeypatch, options, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    _, errors, status = transcribe(capsys, "--path", model, talks, *options)
    assert status == 1
    assert words in errors
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_is_named_and_what_is_finished_stays(
    model, talks, tmp_path, capsys
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "more").touch()  # where the second recording's folder would be
    _, errors, status = transcribe(capsys, "--path", model, talks, "--output-dir", out)
    assert status == 1
    assert f"{out}/more/b.txt cannot be written: " in errors
    assert "what is finished stays" in errors
    assert files_of(out).keys() == {"a talk.txt", "more"}


def test_a_full_disk_leaves_no_half_file(model, talks, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fairseq_speedup.files.os.replace", full)
    out = tmp_path / "out"
    _, errors, status = transcribe(capsys, "--path", model, talks, "--output-dir", out)
    assert status == 1
    assert f"{out}/a talk.txt cannot be written: No space left on device" in errors
    assert files_of(out) == {}
