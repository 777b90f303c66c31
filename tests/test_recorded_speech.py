"""The recipes for AN4 and speechocean762, on small folders in their publishers' layouts."""

import importlib.util
import json
import shutil
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.commands import REPO, run_command
from helpers.corpora import LETTERS, SAMPLE_RATE, tones
from helpers.models import write_pretrained
from helpers.processes import programs

from fairseq_speedup.data.manifest import read_manifest
from fairseq_speedup.report.runs import read_runs

EXAMPLES = REPO / "examples"
SPEAKERS = {  # of AN4, with utterances of each
    "train": {"fash": 2, "fbbh": 2, "mblb": 1, **{f"mz{letter}": 1 for letter in "abcdefgh"}},
    "test": {"fcaw": 2, "mmxg": 2},
}
VALID = {"fash", "mzg"}  # the first and the tenth
FOLDERS = {"train": "an4_clstk", "test": "an4test_clstk"}
SPHERE = """NIST_1A
   1024
sample_count -i {count}
sample_n_bytes -i 2
channel_count -i 1
sample_byte_format -s2 10
sample_rate -i {rate}
sample_coding -s3 pcm
end_head
"""


# -- corpora ---------------------------------------------------------------------------------------


def write_audio(path: Path, samples: np.ndarray, ending: str, rate: int = SAMPLE_RATE) -> Path:
    """16-bit samples as a publisher has them."""
    path = path.with_name(f"{path.name}.{ending.split('-')[0]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == "sph":
        header = SPHERE.format(count=len(samples), rate=rate).encode().ljust(1024)
        path.write_bytes(header + samples.astype(">i2").tobytes())
    elif ending.startswith("raw"):
        path.write_bytes(samples.astype(">i2" if ending == "raw-big" else "<i2").tobytes())
    else:
        soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def spoken(rng) -> tuple[str, np.ndarray]:
    """A text of three words, and samples that say it."""
    words = ["".join(rng.choice(LETTERS[1:], size=2)) for _ in range(3)]
    waveform = tones([letter for word in words for letter in word], rng)
    return " ".join(words), np.round(waveform * 32767).astype(np.int16)


def write_an4(root: Path, ending: str = "wav") -> dict[str, np.ndarray]:
    """Samples by utterance."""
    rng = np.random.default_rng(0)
    every = {}
    (root / "etc").mkdir(parents=True)
    for split, speakers in SPEAKERS.items():
        files, texts = [], []
        for speaker, count in speakers.items():
            for number in range(count):
                name = f"an{number}-{speaker}-b"
                text, every[name] = spoken(rng)
                files.append(f"{FOLDERS[split]}/{speaker}/{name}")
                text = f"<s> {text} </s>" if split == "train" else text
                texts.append(f"{text} ({name})")
                write_audio(root / "wav" / files[-1], every[name], ending)
        (root / f"etc/an4_{split}.fileids").write_text("\n".join(files) + "\n")
        (root / f"etc/an4_{split}.transcription").write_text("\n".join(texts) + "\n")
    return every


def write_speechocean762(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, first in (("train", 0), ("test", 100)):
        lists = {name: [] for name in ("text", "wav.scp", "utt2spk", "spk2age")}
        for speaker in range(first, first + (9 if split == "train" else 2)):
            lists["spk2age"].append(f"{speaker:04d}\t{6 if speaker % 2 else 25}")
            for number in range(2):
                name = f"{speaker:05d}{number:04d}"
                text, samples = spoken(rng)
                file = f"WAVE/SPEAKER{speaker:04d}/{name}.WAV"
                write_audio((root / file).with_suffix(""), samples, "WAV")
                lists["text"].append(f"{name}\t{text}")
                lists["wav.scp"].append(f"{name}\t{file}")
                lists["utt2spk"].append(f"{name}\t{speaker:04d}")
        (root / split).mkdir(parents=True)
        for name, lines in lists.items():
            (root / split / name).write_text("\n".join(lines) + "\n")


# -- preparing -------------------------------------------------------------------------------------


@dataclass
class Prepared:
    """What the command said, and why it stopped, empty where it did not."""

    said: str
    error: str


@pytest.fixture
def prepare(monkeypatch, capsys):
    """``prepare(recipe, root, data, *options)``: the recipe's command, in this process."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(recipe: str, root: Path, data: Path, *options: str) -> Prepared:
        path = EXAMPLES / recipe / "prepare.py"
        spec = importlib.util.spec_from_file_location(f"{recipe}_prepare", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", ["prepare.py", str(root), str(data), *options])
        error = ""
        try:
            module.main(ArgumentParser())
        except SystemExit as stopped:
            error = str(stopped)
        return Prepared(capsys.readouterr().out, error)

    return run


def rows(data: Path, split: str) -> dict[str, tuple[Path, int, str, str]]:
    """Audio file, samples, words and letters of a split's utterances."""
    root, *lines = (data / f"{split}.tsv").read_text().splitlines()
    texts = [(data / f"{split}.{each}").read_text().splitlines() for each in ("wrd", "ltr")]
    found = {}
    for line, words, letters in zip(lines, *texts, strict=True):
        path, count = line.split("\t")
        found[Path(path).stem] = (Path(root, path), int(count), words, letters)
    return found


def is_prepared(data: Path) -> bool:
    return (data / "prepared.json").exists() or any(data.glob("*.tsv"))


@pytest.mark.parametrize("ending", ["sph", "wav", "flac", "raw-big", "raw-little"])
def test_an4_in_every_form_of_its_audio(tmp_path, prepare, ending):
    root, data = tmp_path / "an4", tmp_path / "data"
    samples = write_an4(root, ending)
    done = prepare("an4", root, data)
    assert not done.error
    found = {split: rows(data, split) for split in ("train", "valid", "test")}
    assert {name.split("-")[1] for name in found["valid"]} == VALID
    assert {name.split("-")[1] for name in found["train"]} == set(SPEAKERS["train"]) - VALID
    assert {name.split("-")[1] for name in found["test"]} == set(SPEAKERS["test"])
    train = list(found["train"].items())
    assert list(rows(data, "train_tenth").items()) == train[::10] != train
    every = found["train"] | found["valid"] | found["test"]
    assert set(every) == set(samples)
    for name, (path, count, words, letters) in every.items():
        assert count == len(samples[name])
        read, rate = soundfile.read(path, dtype="int16")
        assert rate == SAMPLE_RATE
        np.testing.assert_array_equal(read, samples[name])
        assert letters.replace(" ", "").replace("|", " ").strip() == words
        assert "<" not in words and len(words.split()) == 3
    raw = ending.startswith("raw")
    order = ending.removeprefix("raw-")
    assert (f"train: 10 recordings were converted (raw, {order}-endian)" in done.said) == raw
    assert (data / "audio").exists() == raw
    symbols = [line.split()[0] for line in (data / "dict.ltr.txt").read_text().splitlines()]
    assert symbols == ["|", "'", *map(chr, range(ord("A"), ord("Z") + 1))]


def test_other_rates_and_channels_are_converted_and_counted(tmp_path, prepare):
    root, data = tmp_path / "an4", tmp_path / "data"
    samples = write_an4(root, "sph")["an0-fcaw-b"]
    folder = root / "wav/an4test_clstk/fcaw"
    write_audio(folder / "an0-fcaw-b", samples, "sph", rate=8000)
    (folder / "an1-fcaw-b.sph").unlink()
    soundfile.write(folder / "an1-fcaw-b.wav", np.stack([samples, samples], axis=1), SAMPLE_RATE)
    done = prepare("an4", root, data)
    assert not done.error
    into = f"into {data}/audio/test\n"
    assert (
        f"test: 1 recordings were converted (resampled from 8000 to 16000 Hz) {into}" in done.said
    )
    assert f"test: 1 recordings were converted (its 2 channels are averaged) {into}" in done.said
    path, count, _, _ = rows(data, "test")["an0-fcaw-b"]
    assert path == data / "audio/test/an0-fcaw-b.flac"
    assert count == soundfile.info(path).frames == pytest.approx(2 * len(samples), abs=1)
    path, count, _, _ = rows(data, "test")["an1-fcaw-b"]
    np.testing.assert_array_equal(soundfile.read(path, dtype="int16")[0], samples)


TRAIN, TEST = "etc/an4_train", "etc/an4_test"
SPH = "wav/an4test_clstk/fcaw/an0-fcaw-b.sph"


def appended(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


def without(path: Path, start: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if start not in line))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / f"{TRAIN}.fileids").unlink(), "an4_train.fileids does not exist"),
        (lambda r: (r / f"{TEST}.transcription").write_text("\n"), "transcription is empty"),
        (lambda r: (r / f"{TEST}.transcription").write_bytes(b"\xff"), "is not UTF-8 text"),
        (lambda r: shutil.rmtree(r / "wav"), "17 audio files are not there: "),
        (lambda r: (r / SPH).unlink(), f"1 audio files are not there: {{root}}/{SPH}. Unpack"),
        (lambda r: (r / SPH).write_text("x"), f"1 audio files cannot be used: {{root}}/{SPH}"),
        (lambda r: (r / SPH).write_bytes(b""), f"1 audio files cannot be used: {{root}}/{SPH}"),
        (
            lambda r: write_audio((r / SPH).with_suffix(""), np.ones(80, np.int16), "sph"),
            f"{SPH} has 80 samples at 16000 Hz",
        ),
        (
            lambda r: without(r / f"{TEST}.transcription", "an1-fcaw-b"),
            "1 recordings have no text: an1-fcaw-b. See {root}/etc/an4_test.transcription",
        ),
        (
            lambda r: without(r / f"{TEST}.fileids", "fcaw"),
            "2 texts are of no recording: an0-fcaw-b; an1-fcaw-b. See {root}/etc/an4_test.fileids",
        ),
        (
            lambda r: appended(r / f"{TEST}.transcription", "GO"),
            "1 lines are no transcripts: {root}/etc/an4_test.transcription, line 5: 'GO'",
        ),
        (
            lambda r: appended(r / f"{TEST}.transcription", "GO (an0-fcaw-b)"),
            "1 texts are there twice: an0-fcaw-b",
        ),
        (
            lambda r: appended(r / f"{TEST}.fileids", "an4test_clstk/fcaw/an0-fcaw-b"),
            "1 utterances are listed twice: an0-fcaw-b",
        ),
    ],
)
def test_what_is_wrong_with_an4_is_named_and_counted(tmp_path, prepare, damage, message):
    root, data = tmp_path / "an4", tmp_path / "data"
    write_an4(root, "sph")
    damage(root)
    error = prepare("an4", root, data).error
    assert message.format(root=root) in error
    assert not is_prepared(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ROOM 5 <s>", "1 texts have symbols that are no letters: an0-fcaw-b has 5. Letters are"),
        ("CAFÉ (2)", "an0-fcaw-b has ( ) 2 É"),
        ("<s> </s>", "1 texts have no words: an0-fcaw-b"),
    ],
)
def test_texts_are_of_letters(tmp_path, prepare, text, message):
    root, data = tmp_path / "an4", tmp_path / "data"
    write_an4(root)
    file = root / f"{TEST}.transcription"
    without(file, "an0-fcaw-b")
    appended(file, f"{text} (an0-fcaw-b)")
    assert message in prepare("an4", root, data).error
    assert not is_prepared(data)


def test_kinds_of_faults_are_said_together_and_can_be_skipped(tmp_path, prepare):
    root, data = tmp_path / "an4", tmp_path / "data"
    write_an4(root)
    shutil.rmtree(root / "wav/an4_clstk/fash")  # all of a validation speaker
    (root / "wav/an4_clstk/mblb/an0-mblb-b.wav").write_text("x")
    file = root / f"{TRAIN}.transcription"
    without(file, "mza")
    appended(file, "5 (an0-mza-b)")
    error = prepare("an4", root, data).error
    assert "2 audio files are not there" in error
    assert "1 audio files cannot be used" in error
    assert "1 texts have symbols that are no letters" in error
    assert error.endswith("--skip leaves these out and takes the rest")
    assert not is_prepared(data)
    done = prepare("an4", root, data, "--skip")
    assert not done.error
    assert "left out:\n1 texts have symbols" in done.said
    assert set(rows(data, "valid")) == {"an0-mzg-b"}
    assert {name.split("-")[1] for name in rows(data, "train")} == {
        *("fbbh", "mzb", "mzc", "mzd", "mze", "mzf", "mzh")
    }


def test_a_folder_is_prepared_once_and_of_one_thing(tmp_path, prepare):
    root, data = tmp_path / "an4", tmp_path / "data"
    write_an4(root)
    assert "note: train lists 13 utterances, AN4 as published has 948" in (
        prepare("an4", root, data).said
    )
    written = (data / "train.tsv").stat().st_mtime_ns
    assert prepare("an4", root, data).said.endswith(f"{data} is prepared already\n")
    assert (data / "train.tsv").stat().st_mtime_ns == written
    (data / "train_tenth.tsv").unlink()  # of before there was one
    assert not prepare("an4", root, data).error and rows(data, "train_tenth")
    shutil.copytree(root, tmp_path / "other")
    error = prepare("an4", tmp_path / "other", data).error
    assert f"{data} was prepared of {root} with other texts or options" in error
    appended(root / f"{TRAIN}.fileids", "an4_clstk/fash/an7-fash-b")
    appended(root / f"{TRAIN}.transcription", "GO (an7-fash-b)")
    assert "was prepared of" in prepare("an4", root, data).error
    assert json.loads((data / "prepared.json").read_text())["root"] == str(root)


def test_a_folder_within_or_a_single_speaker_is_no_corpus(tmp_path, prepare):
    write_an4(tmp_path / "unpacked/an4")
    error = prepare("an4", tmp_path / "unpacked", tmp_path / "data").error
    assert f"{tmp_path}/unpacked/an4 looks like that folder" in error
    root = tmp_path / "unpacked/an4"
    for kind in ("fileids", "transcription"):
        file = root / f"{TRAIN}.{kind}"
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if "fash" in line))
    error = prepare("an4", root, tmp_path / "data").error
    assert "all of train is by fash" in error
    assert "lost is not a folder" in prepare("an4", tmp_path / "lost", tmp_path / "data").error


@pytest.mark.parametrize(
    ("options", "valid", "train"),
    [((), {"0000", "0008"}, 7), (("--min-age", "18"), {"0000"}, 4)],
)
def test_speechocean762(tmp_path, prepare, options, valid, train):
    root, data = tmp_path / "speechocean762", tmp_path / "data"
    write_speechocean762(root)
    done = prepare("speechocean762", root, data, *options)
    assert not done.error
    assert {name[1:5] for name in rows(data, "valid")} == valid
    found = rows(data, "train")
    assert len(found) == 2 * train
    path, count, words, _ = found["000020001"]
    assert path == root / "WAVE/SPEAKER0002/000020001.WAV"
    assert count == soundfile.info(path).frames
    assert f"000020001\t{words}" in (root / "train/text").read_text()
    assert len(rows(data, "test")) == (2 if options else 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "test/utt2spk").unlink(), "test/utt2spk does not exist"),
        (lambda r: (r / "test/spk2age").unlink(), "test/spk2age does not exist"),
        (lambda r: without(r / "test/text", "001000000"), "See {root}/test/text."),
        (lambda r: without(r / "test/utt2spk", "001000000"), "See {root}/test/utt2spk."),
        (lambda r: without(r / "test/wav.scp", "001000000"), "1 texts are of no recording"),
        (lambda r: shutil.rmtree(r / "WAVE/SPEAKER0100"), "2 audio files are not there"),
        (lambda r: appended(r / "test/text", "001000000\tAGAIN"), "1 keys are there twice"),
        (
            lambda r: appended(r / "test/wav.scp", "9\tsph2pipe -f wav 9.sph |"),
            "1 entries of wav.scp are commands: 9 sph2pipe -f wav 9.sph |",
        ),
        (lambda r: appended(r / "test/spk2age", "0199\told"), "1 ages are no numbers: 0199 'old'"),
    ],
)
def test_what_is_wrong_with_speechocean762_is_named(tmp_path, prepare, damage, message):
    root, data = tmp_path / "speechocean762", tmp_path / "data"
    write_speechocean762(root)
    damage(root)
    error = prepare("speechocean762", root, data, "--min-age", "0").error
    assert message.format(root=root) in error
    assert not is_prepared(data)


# -- from the folder to the report -----------------------------------------------------------------


@pytest.fixture
def examples(tmp_path) -> Path:
    """The recipes in a checkout whose environment is the one that runs the tests."""
    folder = tmp_path / "checkout/examples"
    left_out = shutil.ignore_patterns("results", "*.pt", "out", "*.md")
    for name in ("an4", "speechocean762", "recorded", "quickstart", "study", "open_corpus"):
        shutil.copytree(EXAMPLES / name, folder / name, ignore=left_out)
    (folder / "environment.sh").write_text(f"REPO={folder.parent}\n")
    return folder


def test_an4_from_its_folder_to_the_report(tmp_path, examples):
    pytest.importorskip("flashlight.lib.text.decoder")
    write_an4(tmp_path / "an4", "sph")
    w2v_path = write_pretrained(tmp_path / "tiny.pt", normalize=True)
    given = [examples / "an4/run.sh", tmp_path / "an4", tmp_path / "out", "--skip"]
    given += ["row=conv2", "updates=2", "~tests.valid", "tests.test=[lm]"]
    path = f"{programs()}:/usr/bin:/bin"
    env = {"PATH": path, "W2V_PATH": str(w2v_path), "JOBS": "1"}
    env["PYTHONPATH"] = str(REPO)
    run_command("bash", *given, env=env)
    (row,) = read_runs(f"{tmp_path}/out/results")
    assert (row.name, str(row.test_set)) == ("train/conv2", "test, LM")
    assert list((tmp_path / "out").rglob("*.md"))
    lexicon = (tmp_path / "out/data/lexicon.txt").read_text().splitlines()
    words = set((tmp_path / "out/data/train.wrd").read_text().split())
    assert {line.split("\t")[0] for line in lexicon} == words


@pytest.mark.parametrize("recipe", ["an4", "speechocean762"])
@pytest.mark.parametrize("given", [(), ("corpus",), ("corpus", "row=full")])
def test_a_recipe_says_what_it_needs(examples, recipe, given):
    done = run_command("bash", examples / recipe / "run.sh", *given, check=False)
    assert done.returncode == 2
    assert f"bash examples/{recipe}/run.sh /path/to/{recipe} OUTPUT_FOLDER" in done.stderr


def test_a_noisy_copy_has_the_texts_and_the_noise_that_is_asked_for(tmp_path):
    data = _spoken_split(tmp_path / "data", 2)
    counts = read_manifest(str(data / "test.tsv")).num_samples
    noisy = [sys.executable, EXAMPLES / "recorded/noisy.py"]
    done = run_command(*noisy, data, "test", "--snr", "5", "5")
    assert "--gen-subset test_snr5-5" in done.stdout
    manifest = read_manifest(str(data / "test_snr5-5.tsv"))
    assert manifest.num_samples == counts
    assert (data / "test_snr5-5.ltr").read_text() == (data / "test.ltr").read_text()
    run_command(*noisy, data, "test", "--snr", "0", "5", "--without-labels")
    assert (data / "test_snr0-5.ltr").read_text() == "\n\n"
    for number, name in enumerate(manifest.files):
        clean, _ = soundfile.read(data / f"wav/{number}.wav")
        noisy, _ = soundfile.read(Path(manifest.root) / name)
        gain = (noisy @ clean) / (clean @ clean)  # the noise is next to orthogonal
        ratio = 10 * np.log10(np.mean((gain * clean) ** 2) / np.mean((noisy - gain * clean) ** 2))
        assert ratio == pytest.approx(5, abs=0.5)


def test_babble_is_of_other_utterances(tmp_path):
    data = _spoken_split(tmp_path / "data", 8)
    noisy = [sys.executable, EXAMPLES / "recorded/noisy.py", data, "test", "--noise", "babble"]
    run_command(*noisy, "--snr", "5")
    clean = [soundfile.read(data / f"wav/{number}.wav")[0] for number in range(8)]
    manifest = read_manifest(str(data / "test_babble_snr5.tsv"))
    assert manifest.num_samples == [len(each) for each in clean]
    for number, name in enumerate(manifest.files):
        mixed, _ = soundfile.read(Path(manifest.root) / name)
        # what is no sum of this utterance and of some of the others, at any shift, is left
        length = len(mixed)
        columns = [clean[number]]
        for other in clean[:number] + clean[number + 1 :]:
            shifts = np.stack([np.resize(np.roll(other, by), length) for by in range(len(other))])
            best = np.abs(shifts @ (mixed - clean[number])).argmax()
            columns.append(shifts[best])
        _, residual, *_ = np.linalg.lstsq(np.stack(columns, axis=1), mixed, rcond=None)
        assert residual[0] < 0.05 * mixed @ mixed


def test_babble_of_too_few_is_refused(tmp_path):
    data = _spoken_split(tmp_path / "data", 6)
    noisy = [sys.executable, EXAMPLES / "recorded/noisy.py", data, "test", "--noise", "babble"]
    done = run_command(*noisy, check=False)
    assert done.returncode == 1
    assert "test.tsv has 6 utterances; --noise babble takes at least 7" in done.stderr
    assert not (data / "test_babble_snr10").exists()


def _spoken_split(data: Path, count: int) -> Path:
    """``count`` utterances, as a split ``test``."""
    (data / "wav").mkdir(parents=True)
    rng = np.random.default_rng(1)
    lines = [str(data / "wav")]
    for number in range(count):
        samples = spoken(rng)[1]
        path = write_audio(data / f"wav/{number}", samples, "wav")
        lines.append(f"{path.name}\t{len(samples)}")
    (data / "test.tsv").write_text("\n".join(lines) + "\n")
    (data / "test.ltr").write_text("A B |\n" * count)
    return data
