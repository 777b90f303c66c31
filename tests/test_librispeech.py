"""The LibriSpeech recipe, end to end on a tiny folder in that corpus' layout."""

import numpy as np
import pytest
import soundfile
from helpers.commands import REPO
from helpers.corpora import LETTERS, SAMPLE_RATE, tones, write_arpa
from helpers.models import write_pretrained
from helpers.processes import run_forked

from fairseq_speedup.__main__ import main
from fairseq_speedup.report.runs import read_runs

PREPARE = REPO / "examples/librispeech/prepare.py"
CHAPTERS = {
    "train-clean-100": [(19, 198), (19, 227), (26, 495)],
    "dev-other": [(116, 288046)],
    "test-clean": [(1089, 134686)],
    "test-other": [(1688, 142285)],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """FLAC files and transcripts as they are in LibriSpeech."""
    root = tmp_path_factory.mktemp("corpus") / "LibriSpeech"
    rng = np.random.default_rng(0)
    for subset, chapters in CHAPTERS.items():
        for speaker, chapter in chapters:
            folder = root / subset / str(speaker) / str(chapter)
            folder.mkdir(parents=True)
            lines = []
            for number in range(4):
                name = f"{speaker}-{chapter}-{number:04d}"
                words = ["".join(rng.choice(LETTERS[1:], size=2)) for _ in range(3)]
                waveform = tones([letter for word in words for letter in word], rng)
                soundfile.write(folder / f"{name}.flac", waveform, SAMPLE_RATE)
                lines.append(f"{name} {' '.join(words)}\n")
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    (root / "SPEAKERS.TXT").write_text("; of the corpus\n")
    return root


@pytest.fixture(scope="module")
def data(root):
    folder = root.parent / "data"
    run_forked(PREPARE, root, folder)
    return folder


def test_manifests_and_letters(root, data):
    top, *rows = (data / "train.tsv").read_text().splitlines()
    assert top == str(root)
    assert len(rows) == 12
    name, count = rows[0].split("\t")
    assert name == "train-clean-100/19/198/19-198-0000.flac"
    assert int(count) == soundfile.info(root / name).frames
    text = (root / "train-clean-100/19/198/19-198.trans.txt").read_text().splitlines()[0]
    words = text.split(" ", 1)[1]
    assert (data / "train.wrd").read_text().splitlines()[0] == words
    letters = (data / "train.ltr").read_text().splitlines()[0]
    assert letters.replace(" ", "").replace("|", " ").strip() == words
    symbols = [line.split()[0] for line in (data / "dict.ltr.txt").read_text().splitlines()]
    assert symbols[:5] == ["|", "E", "T", "A", "O"]  # of the public checkpoints
    assert len(symbols) == 28
    assert not (data / "dev_clean.tsv").exists()
    assert len((data / "test_other.tsv").read_text().splitlines()) == 5


def test_a_row_from_corpus_to_report(root, data, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder")
    words = sorted(set((data / "train.wrd").read_text().split()))
    write_arpa(tmp_path / "4-gram.arpa", words)
    lexicon = ["--words", str(tmp_path / "4-gram.arpa"), "--output", str(data / "lexicon.txt")]
    assert main(["lexicon", str(data), *lexicon, "--overwrite"]) == 0
    w2v_path = write_pretrained(tmp_path / "tiny.pt", normalize=True)
    small = ["common.cpu=true", "common.fp16=false", "optimization.max_update=4"]
    small += ["distributed_training.distributed_world_size=1", "optimization.update_freq=[1]"]
    small += ["dataset.num_workers=0", "model.mask_channel_prob=0", "model.apply_mask=false"]
    quoted = ",".join(f"'{each}'" for each in small)
    run_forked(
        REPO / "examples/study/study.py",
        *("--config-dir", REPO / "examples/librispeech", "--config-name", "librispeech"),
        *("row=conv2", "~tests.test_other", f"out={tmp_path}/study", f"data={data}"),
        *(f"w2v_path={w2v_path}", f"kenlm_model={tmp_path}/4-gram.arpa"),
        f"finetuning.overrides=[{quoted}]",
        "generate=[--cpu,--batch-size,'4']",
        cwd=REPO,
    )
    found = {(row.name, str(row.test_set)) for row in read_runs(f"{tmp_path}/study/results")}
    assert found == {("train/conv2", "test_clean"), ("train/conv2", "test_clean, LM")}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "19-198-0001.flac").unlink(), "19-198-0001 has no audio file"),
        (lambda c: (c / "19-198.trans.txt").unlink(), "19-198-0000 has no transcript"),
        (lambda c: (c / "19-198-0001.flac").write_text("x"), "19-198-0001.flac"),
        (lambda c: (c / "19-198.trans.txt").write_text("19-198-0000 é\n"), "line 1: letters ['é']"),
        (lambda c: (c / "19-198.trans.txt").write_text("19-198-0000\n"), "line 1: no text"),
    ],
)
def test_a_damaged_corpus_is_named(tmp_path, damage, message):
    chapter = tmp_path / "LibriSpeech/train-clean-100/19/198"
    chapter.mkdir(parents=True)
    for number in range(2):
        waveform = np.ones(16000, dtype=np.float32) / 2
        soundfile.write(chapter / f"19-198-{number:04d}.flac", waveform, SAMPLE_RATE)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 A\n19-198-0001 B\n")
    damage(chapter)
    root = tmp_path / "LibriSpeech"
    done = run_forked(PREPARE, root, tmp_path / "data", check=False)
    assert done.returncode
    assert message in done.stderr
    assert not (tmp_path / "data/train.tsv").exists()


def test_folders_that_are_not_there_are_named(root, tmp_path):
    done = run_forked(PREPARE, root, tmp_path, "--train", "train-clean-360", check=False)
    assert "train-clean-360 does not exist; in" in done.stderr
    assert "dev-other, test-clean" in done.stderr
    done = run_forked(PREPARE, tmp_path / "lost", tmp_path, check=False)
    assert "lost is not a folder" in done.stderr
