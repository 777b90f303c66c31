"""Makes a long recording of the quickstart's test voices, and the same speech cut at its silences.

    python long_recording.py OUT/corpus FOLDER [--minutes 60]

FOLDER gets splits in fairseq's form: `hour`, one recording in which utterances of the test split
follow each other in random order with pauses of 0.3 to 1 s, and `cut`, the same samples cut in the
middle of each pause. The quickstart has no pauses, which a model must have heard:
`train` and `valid` hold that corpus' splits once, three utterances in a recording.
"""

import argparse
import itertools
import shutil
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16000
SEED = 1
PAUSE_SECONDS = (0.3, 1.0)
TOGETHER = 3  # utterances in a recording to train on


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


def write_joined(corpus: Path, folder: Path, split: str) -> None:
    """A split to train on."""
    utterances = read_split(corpus, split)
    pieces = pieces_of(utterances)
    rows, labels = [], []
    (folder / split).mkdir(exist_ok=True)
    for number in range(len(utterances) // TOGETHER):
        together = list(itertools.islice(pieces, TOGETHER))
        name = f"{split}/{number:05d}.flac"
        samples = np.concatenate([piece for piece, _ in together])
        soundfile.write(folder / name, samples, SAMPLE_RATE)
        rows.append((name, len(samples)))
        labels.append(" ".join(line for _, line in together))
    write_split(folder, split, rows, labels)


def write_split(folder: Path, split: str, rows: list[tuple[str, int]], labels: list[str]) -> None:
    lines = [str(folder.resolve()), *(f"{name}\t{count}" for name, count in rows)]
    (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (folder / f"{split}.ltr").write_text("\n".join(labels) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    (args.folder / "cut").mkdir(parents=True, exist_ok=True)
    rows, labels, total = [], [], 0
    with soundfile.SoundFile(args.folder / "hour.flac", "w", SAMPLE_RATE, 1) as recording:
        for piece, line in pieces_of(read_split(args.corpus, "test")):
            name = f"cut/{len(rows):05d}.flac"
            soundfile.write(args.folder / name, piece, SAMPLE_RATE)
            recording.write(piece)
            rows.append((name, len(piece)))
            labels.append(line)
            total += len(piece)
            if total >= args.minutes * 60 * SAMPLE_RATE:
                break
    write_split(args.folder, "cut", rows, labels)
    write_split(args.folder, "hour", [("hour.flac", total)], [" ".join(labels)])
    write_joined(args.corpus, args.folder, "train")
    write_joined(args.corpus, args.folder, "valid")
    shutil.copy(args.corpus / "dict.ltr.txt", args.folder)
    print(f"{args.folder}: {len(rows)} utterances, {total / SAMPLE_RATE / 60:.1f} minutes")


if __name__ == "__main__":
    main()
