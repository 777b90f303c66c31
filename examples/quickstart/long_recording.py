"""Makes a long recording of the quickstart's test voices, and the same speech cut at its silences.

    python long_recording.py OUT/corpus FOLDER [--minutes 60]

FOLDER gets splits in fairseq's form: `hour`, one recording in which utterances of the test split
follow each other in random order with pauses of 0.3 to 1 s; `cut`, the same samples cut in pauses
into pieces of up to 30 s; and `utterances`, cut in each pause. A model must have heard pauses:
`train` and `valid` hold that corpus' splits, as many utterances in a recording as fit into 15 s.
"""

import argparse
import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16000
SEED = 1
PAUSE_SECONDS = (0.3, 1.0)
LONGEST_PIECE = 30.0  # seconds, of `cut`
LONGEST_TO_TRAIN_ON = 15.0  # seconds


def read_split(corpus: Path, split: str) -> list[tuple[Path, str]]:
    """(audio file, labels) of each utterance"""
    root, *rows = (corpus / f"{split}.tsv").read_text().splitlines()
    labels = (corpus / f"{split}.ltr").read_text().splitlines()
    files = [Path(root, row.split("\t")[0]) for row in rows]
    return list(zip(files, labels, strict=True))


def pieces_of(utterances):
    """(samples, labels) of each utterance in random order, with half a pause on either side; again
    and again."""
    rng = np.random.default_rng(SEED)
    while True:
        for index in rng.permutation(len(utterances)):
            file, labels = utterances[index]
            speech, _ = soundfile.read(file, dtype="float32")
            half = round(rng.uniform(*PAUSE_SECONDS) * SAMPLE_RATE / 2)
            yield np.pad(speech, half), labels


def enough(pieces, minutes: float) -> list:
    """The first pieces, until they last as long."""
    found, left = [], minutes * 60 * SAMPLE_RATE
    while left > 0:
        found.append(next(pieces))
        left -= len(found[-1][0])
    return found


def grouped(pieces, seconds: float) -> list:
    """Pieces that follow each other put together, up to ``seconds`` long."""
    groups, length = [], math.inf
    for samples, labels in pieces:
        length += len(samples)
        if length > seconds * SAMPLE_RATE or not groups:
            groups.append([])
            length = len(samples)
        groups[-1].append((samples, labels))
    return [
        (np.concatenate([samples for samples, _ in group]), " ".join(line for _, line in group))
        for group in groups
    ]


def write_joined(corpus: Path, folder: Path, split: str) -> None:
    """A split to train on."""
    utterances = read_split(corpus, split)
    pieces = itertools.islice(pieces_of(utterances), len(utterances))
    write_pieces(folder, split, grouped(pieces, LONGEST_TO_TRAIN_ON))


def write_pieces(folder: Path, split: str, pieces: list) -> None:
    """Audio, manifest and labels."""
    (folder / split).mkdir(exist_ok=True)
    rows = []
    for number, (samples, _) in enumerate(pieces):
        name = f"{split}/{number:05d}.flac"
        soundfile.write(folder / name, samples, SAMPLE_RATE)
        rows.append(f"{name}\t{len(samples)}")
    lines = [str(folder.resolve()), *rows]
    (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (folder / f"{split}.ltr").write_text("".join(f"{labels}\n" for _, labels in pieces))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    pieces = enough(pieces_of(read_split(args.corpus, "test")), args.minutes)
    write_pieces(args.folder, "utterances", pieces)
    write_pieces(args.folder, "cut", grouped(pieces, LONGEST_PIECE))
    write_pieces(args.folder, "hour", grouped(pieces, math.inf))
    write_joined(args.corpus, args.folder, "train")
    write_joined(args.corpus, args.folder, "valid")
    shutil.copy(args.corpus / "dict.ltr.txt", args.folder)
    minutes = sum(len(samples) for samples, _ in pieces) / SAMPLE_RATE / 60
    print(f"{args.folder}: {len(pieces)} utterances, {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
