"""transcribe: audio files of any kind, with what fairseq-generate would say of them."""

import json
import math
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from fairseq.data import Dictionary
from helpers.commands import generate_here
from helpers.corpora import LETTERS, SAMPLE_RATE, write_dictionary, write_split

from fairseq_speedup.__main__ import main
from fairseq_speedup.data.recording import BLOCK, RecordingError, read_recording
from fairseq_speedup.decoding import generator
from fairseq_speedup.transcription.transcript import Transcript


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "test", 4, seed=1)
    write_dictionary(folder)
    return folder


@pytest.fixture(scope="module")
def files(data):
    return [data / f"audio/test-{index}.wav" for index in range(4)]


def transcribe(capsys, *arguments) -> tuple[list[str], str, int]:
    """Lines on standard output, standard error and exit status."""
    capsys.readouterr()
    status = main(["transcribe", "--cpu", *map(str, arguments)])
    written = capsys.readouterr()
    return written.out.splitlines(), written.err, status


def hypotheses(folder) -> list[str]:
    lines = (folder / "generate-test.txt").read_text().splitlines()
    by_number = {int(x.split("\t")[0][2:]): x.split("\t")[2] for x in lines if x.startswith("D-")}
    return [by_number[number] for number in sorted(by_number)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("decoder", [[], ["--ctc-decoder", "beam"]], ids=["greedy", "beam"])
def test_it_says_what_fairseq_generate_says(
    data, model, files, tmp_path, capsys, decoder, batch_size
):
    generate_here(data, model, tmp_path, "--batch-size", 2, *decoder)
    lines, _, status = transcribe(
        capsys, "--path", model, "--batch-size", batch_size, *decoder, *files
    )
    assert status == 0
    assert lines == [
        f"{file}\t{text}" for file, text in zip(files, hypotheses(tmp_path), strict=True)
    ]
    assert any(line.split("\t")[1] for line in lines)


def test_padding_that_a_model_emits_is_not_printed(data, model, files, tmp_path, capsys):
    state = torch.load(model, weights_only=False)
    bias = state["model"]["w2v_encoder.proj.bias"]
    bias[Dictionary().pad()] = bias[-len(LETTERS) :].max() + 3
    torch.save(state, tmp_path / "pads.pt")
    generate_here(data, tmp_path / "pads.pt", tmp_path)
    lines, _, _ = transcribe(capsys, "--path", tmp_path / "pads.pt", "--json", *files)
    found = [json.loads(line) for line in lines]
    assert [each["text"] for each in found] == hypotheses(tmp_path)
    assert all(each["text"] for each in found)
    assert not any("<pad>" in line for line in lines)


def test_json_has_times_scores_and_nbest(model, files, capsys):
    options = ["--json", "--ctc-decoder", "beam", "--beam", 4, "--nbest", 3]
    lines, _, _ = transcribe(capsys, "--path", model, files[0], *options)
    (found,) = map(json.loads, lines)
    assert found["audio"] == str(files[0])
    assert found["duration"] == pytest.approx(soundfile.info(files[0]).duration, abs=1e-3)
    assert " ".join(word["word"] for word in found["words"]) == found["text"]
    assert all(0 <= word["start"] < word["end"] <= found["duration"] for word in found["words"])
    assert found["nbest"][0]["text"] == found["text"]
    scores = [each["score"] for each in found["nbest"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_other_rates_and_channels_are_made_to_fit_and_said_so(model, files, tmp_path, capsys):
    samples, _ = soundfile.read(files[0], dtype="float32")
    other = np.roll(samples[::-1], 1000)
    stereo = np.stack([samples + other, samples - other], axis=1)
    soundfile.write(tmp_path / "stereo.flac", stereo, SAMPLE_RATE)
    soundfile.write(tmp_path / "other.ogg", np.repeat(samples, 3), 3 * SAMPLE_RATE)
    lines, errors, _ = transcribe(
        capsys, "--path", model, files[0], tmp_path / "stereo.flac", tmp_path / "other.ogg"
    )
    one, averaged, resampled = (line.split("\t")[1] for line in lines)
    assert averaged == one and resampled
    assert f"note: {tmp_path}/stereo.flac: its 2 channels are averaged" in errors
    assert f"note: {tmp_path}/other.ogg: resampled from 48000 to 16000 Hz" in errors


def test_channels_are_averaged_of_whatever_each_has(tmp_path):
    channels = np.random.default_rng(0).uniform(-0.9, 0.9, (BLOCK + 5000, 3)).astype(np.float32)
    soundfile.write(tmp_path / "three.wav", channels, SAMPLE_RATE, "FLOAT")
    found = read_recording(str(tmp_path / "three.wav"), SAMPLE_RATE, normalize=False)
    expected = torch.from_numpy(channels.mean(axis=1))
    torch.testing.assert_close(found.waveform, expected, atol=1e-6, rtol=0)
    assert found.changes == ["its 3 channels are averaged"]


def test_resampling_block_by_block_keeps_a_tone(tmp_path):
    seconds, rate = 20, 44100
    time = np.arange(seconds * rate) / rate
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate)
    found = read_recording(str(tmp_path / "tone.wav"), SAMPLE_RATE, normalize=False).waveform
    assert len(found) == seconds * SAMPLE_RATE
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(found)) / SAMPLE_RATE)
    assert np.abs(found.numpy() - expected)[1000:-1000].max() < 1e-3


def test_normalisation_is_fairseqs(tmp_path):
    samples = np.random.default_rng(0).standard_normal(600_000).astype(np.float32) / 20 + 0.1
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, "FLOAT")
    found = read_recording(str(tmp_path / "a.wav"), SAMPLE_RATE, normalize=True).waveform
    expected = torch.nn.functional.layer_norm(torch.from_numpy(samples), samples.shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.fixture
def bad(tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), SAMPLE_RATE)
    soundfile.write(tmp_path / "short.wav", np.ones(200) / 2, SAMPLE_RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(9000, np.nan), SAMPLE_RATE, "FLOAT")
    (tmp_path / "headerless.raw").write_bytes(bytes(32000))
    return {
        "headerless.raw": "cannot be read as audio: it has no header to tell its sample rate",
        "text.wav": "cannot be read as audio: Format not recognised",
        "empty.wav": "holds no samples",
        "short.wav": "has 200 samples at 16000 Hz; this model needs 400 for one frame (25.0 ms)",
        "nan.wav": "holds NaN or infinite samples",
        "missing.wav": "does not exist",
    }


def test_a_bad_file_is_reported_and_the_others_go_on(model, files, bad, tmp_path, capsys):
    broken = [tmp_path / name for name in bad]
    options = ["--path", model, "--json", "--batch-size", 2]
    lines, errors, status = transcribe(capsys, *options, files[0], *broken, files[1])
    assert status == 1
    assert f"{len(bad)} of {len(bad) + 2} files could not be transcribed" in errors
    rows = {row["audio"]: row for row in map(json.loads, lines)}
    assert list(rows)[-1] == str(files[1])
    assert len(rows) == len(bad) + 2
    for path, message in zip(broken, bad.values(), strict=True):
        assert rows[str(path)]["error"].startswith(str(path))
        assert message in rows[str(path)]["error"]
        assert f"error: {rows[str(path)]['error']}" in errors
    with pytest.raises(RecordingError):
        read_recording(str(broken[0]), SAMPLE_RATE, normalize=False)


def test_whatever_reading_raises_is_that_files_error(model, files, capsys, monkeypatch):
    class Odd(soundfile.SoundFile):
        def read(self, *args, **kwargs):
            if self.name == os.fsencode(files[1]):
                raise ZeroDivisionError
            return super().read(*args, **kwargs)

    monkeypatch.setattr(soundfile, "SoundFile", Odd)
    lines, errors, status = transcribe(capsys, "--path", model, "--json", *files[:3])
    assert status == 1
    rows = {row["audio"]: row for row in map(json.loads, lines)}
    assert rows[str(files[1])]["error"] == f"{files[1]} cannot be read as audio: ZeroDivisionError"
    assert all(rows[str(file)]["text"] for file in (files[0], files[2]))
    assert "1 of 3 files could not be transcribed" in errors


def test_a_format_that_cannot_be_sought_in_is_read(model, files, tmp_path, capsys):
    samples, _ = soundfile.read(files[0], dtype="float32")
    soundfile.write(tmp_path / "gsm.wav", samples, SAMPLE_RATE, "GSM610")
    found = read_recording(str(tmp_path / "gsm.wav"), SAMPLE_RATE, normalize=False).waveform
    expected, _ = soundfile.read(tmp_path / "gsm.wav", dtype="float32")
    assert np.array_equal(found.numpy(), expected)
    lines, errors, status = transcribe(capsys, "--path", model, tmp_path / "gsm.wav", files[1])
    assert (len(lines), status) == (2, 0)
    assert errors.startswith("transcribed 2 files, ")


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "AIFF", "AU", "W64", "RF64", "NIST", "VOC"])
def test_a_file_that_was_cut_off_is_said_to_be(tmp_path, form, monkeypatch):
    path = tmp_path / "cut"
    soundfile.write(path, np.full(SAMPLE_RATE, 0.1), SAMPLE_RATE, format=form)
    whole = path.read_bytes()
    assert read_recording(str(path), SAMPLE_RATE, normalize=False).notes == []
    path.write_bytes(whole[: len(whole) - SAMPLE_RATE])
    found = read_recording(str(path), SAMPLE_RATE, normalize=False)
    assert len(found.waveform) == SAMPLE_RATE // 2
    (note,) = found.notes
    words = {
        "NIST": r"8000 of 16000 samples are there",
        "VOC": "it does not end as files of its format do",
    }.get(form, r"1\d{4} of 3\d{4} bytes of audio are there")
    assert re.fullmatch(f"its end is missing: {words}", note)
    with path.open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        assert read_recording("-", SAMPLE_RATE, normalize=False).notes == [note]


@pytest.mark.parametrize("form", ["MP3", "OGG"])
def test_so_is_one_of_frames_that_stand_alone(tmp_path, form):
    path = tmp_path / "cut"
    if form not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {form}")
    noise = 0.1 * np.random.default_rng(0).standard_normal(10 * SAMPLE_RATE)
    soundfile.write(path, noise, SAMPLE_RATE, format=form)
    whole = path.read_bytes()
    assert read_recording(str(path), SAMPLE_RATE, normalize=False).missing is None
    path.write_bytes(whole[: len(whole) // 2])
    found = read_recording(str(path), SAMPLE_RATE, normalize=False)
    assert 4 * SAMPLE_RATE < len(found.waveform) < 6 * SAMPLE_RATE
    words = r"\d{5} of 160000 samples are there|it does not end as files of its format do"
    assert re.fullmatch(words, found.missing)


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_stream_of_unknown_length_lacks_nothing(tmp_path, size):
    path = tmp_path / "stream.wav"
    soundfile.write(path, np.full(SAMPLE_RATE, 0.1), SAMPLE_RATE)
    header, samples = path.read_bytes()[:44], path.read_bytes()[44:]
    path.write_bytes(header[:40] + size.to_bytes(4, "little") + samples)
    found = read_recording(str(path), SAMPLE_RATE, normalize=False)
    assert (len(found.waveform), found.notes) == (SAMPLE_RATE, [])


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_what_the_model_gives_no_numbers_for_is_named_and_the_others_go_on(
    model, files, capsys, monkeypatch, batch_size
):
    expected, _, _ = transcribe(capsys, "--path", model, "--batch-size", batch_size, *files)
    lengths = [soundfile.info(file).frames for file in files]

    def spoilt(models, net_input, *others):
        encoded = encode(models, net_input, *others)
        for row, count in enumerate(encoded.num_samples.tolist()):
            if count in (lengths[1], lengths[2]):
                encoded.log_probs[:, row] = np.nan
        return encoded

    encode = generator.encode
    monkeypatch.setattr(generator, "encode", spoilt)
    lines, errors, status = transcribe(capsys, "--path", model, "--batch-size", batch_size, *files)
    assert status == 1
    assert lines == [expected[0], expected[3]]
    for file in files[1:3]:
        assert f"error: {file}: the model gives no numbers (NaN): its training diverged" in errors
    assert "--inference bf16 or fp32" in errors
    assert "--fp16" not in errors and "utterance" not in errors
    assert "transcribed 2 files," in errors and "2 of 4 files could not be" in errors


def test_scores_that_json_does_not_have_are_null():
    nothing = {"text": "", "score": -math.inf, "acoustic_score": math.nan, "lm_score": 0.0}
    line = Transcript("a.wav", 1.0, [nothing, nothing], []).as_json()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    expected = {**nothing, "score": None, "acoustic_score": None}
    assert found == {
        "audio": "a.wav", "duration": 1.0, **expected, "words": [], "nbest": [expected] * 2
    }  # fmt: skip


def test_a_long_recording_runs_in_windows(model, files, tmp_path, capsys):
    samples = np.concatenate([soundfile.read(file)[0] for file in files] * 5)
    soundfile.write(tmp_path / "long.wav", samples, SAMPLE_RATE)
    options = ["--path", model, "--json", "--window-seconds", 4, "--window-overlap", 1]
    lines, _, status = transcribe(capsys, *options, tmp_path / "long.wav", files[0])
    assert status == 0
    long, short = map(json.loads, lines)
    ends = [word["end"] for word in long["words"]]
    assert ends == sorted(ends)
    assert ends[-1] > long["duration"] - 4
    (alone,), _, _ = transcribe(capsys, "--path", model, files[0])
    assert alone.split("\t")[1] == short["text"]


def test_an_exported_model_says_the_same(model, files, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    exported = tmp_path / "model.onnx"
    assert main(["export", "--path", str(model), "--output", str(exported)]) == 0
    for options in (["--batch-size", 3], ["--window-seconds", 2, "--window-overlap", 1]):
        expected, _, _ = transcribe(capsys, "--path", model, *options, *files)
        found, _, status = transcribe(capsys, "--path", exported, *options, *files)
        assert status == 0
        assert found == expected
    for options, words in [
        (["--inference", "int8"], "--model-overrides and --inference do not change"),
        (["--data", tmp_path], f"--data {tmp_path} does not change {exported}, which holds its"),
    ]:
        _, errors, status = transcribe(capsys, "--path", exported, *options, files[0])
        assert status == 1
        assert words in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", 0], "--batch-size 0 is out of range"),
        (["--beam", 0, "--ctc-decoder", "beam"], "--beam 0 is out of range"),
        (["--nbest", 2], "greedy decoding has one hypothesis"),
        (["--window-seconds", 1], "--window-seconds 1.0 is out of range"),
        (["--model-overrides", "{'frame_pol': 2}"], "'frame_pol' is no option of"),
    ],
)
def test_options_that_make_no_sense_are_refused(model, files, capsys, options, message):
    lines, errors, status = transcribe(capsys, "--path", model, files[0], *options)
    assert (status, lines) == (1, [])
    assert message in errors
