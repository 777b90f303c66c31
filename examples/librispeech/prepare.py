"""Manifests and letters of LibriSpeech, as fairseq wants them, from the folder as it is unpacked.

    python prepare.py /path/to/LibriSpeech DATA --train train-clean-100

Writes {split}.tsv, {split}.ltr and {split}.wrd for `train` (what --train names, put together) and
for each evaluation set that is there (dev_clean, dev_other, test_clean, test_other), and
dict.ltr.txt, whose order is that of the public fine-tuned checkpoints.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import soundfile

sys.path.append(str(Path(__file__).resolve().parent.parent / "quickstart"))

from labels import write_dictionary, write_manifest

EVALUATION = ["dev-clean", "dev-other", "test-clean", "test-other"]
# of fairseq's published models: by frequency in 960 hours
LETTERS = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"
SAMPLE_RATE = 16000


def transcripts_of(chapter: Path) -> list[tuple[str, str]]:
    """(utterance, text) of the lines of ``*.trans.txt`` in a chapter's folder."""
    found = []
    for file in sorted(chapter.glob("*.trans.txt")):
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
            name, _, text = line.partition(" ")
            unknown = set(text) - set(LETTERS) - {" "}
            if not text.strip() or unknown:
                reason = f"letters {sorted(unknown)}" if unknown else "no text"
                raise SystemExit(f"{file}, line {number}: {reason}; letters are {LETTERS[1:]}")
            found.append((name, text.strip()))
    return found


def read_chapter(chapter: Path) -> list[tuple[Path, int, str]]:
    """(file, samples, text) of a chapter's utterances."""
    found = []
    spoken = {path.stem for path in chapter.glob("*.flac")}
    transcripts = transcripts_of(chapter)
    written = {name for name, _ in transcripts}
    for name in sorted(spoken ^ written):
        missing = "transcript" if name in spoken else "audio file"
        raise SystemExit(f"{chapter}: {name} has no {missing}")
    for name, text in transcripts:
        path = chapter / f"{name}.flac"
        try:
            info = soundfile.info(path)
        except soundfile.LibsndfileError as error:
            raise SystemExit(f"{path}: {error.error_string}") from None
        if info.samplerate != SAMPLE_RATE or info.channels != 1:
            raise SystemExit(
                f"{path}: {info.samplerate} Hz and {info.channels} channels, LibriSpeech has "
                f"{SAMPLE_RATE} and 1"
            )
        found.append((path, info.frames, text))
    return found


def read_subset(root: Path, subset: str, pool) -> list[tuple[Path, int, str]]:
    folder = root / subset
    if not folder.is_dir():
        there = sorted(each.name for each in root.iterdir() if each.is_dir())
        raise SystemExit(f"{folder} does not exist; in {root}: {', '.join(there) or 'no folder'}")
    chapters = sorted({file.parent for file in folder.rglob("*.flac")})
    if not chapters:
        raise SystemExit(f"{folder} holds no .flac files: is it unpacked?")
    return [utterance for chapter in pool.map(read_chapter, chapters) for utterance in chapter]


def write_split(data: Path, split: str, root: Path, utterances) -> None:
    rows = [(str(path.relative_to(root)), count, text) for path, count, text in utterances]
    write_manifest(data, root, split, rows)
    hours = sum(count for _, count, _ in utterances) / SAMPLE_RATE / 3600
    print(f"{split}: {len(utterances)} utterances, {hours:.2f} hours")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder LibriSpeech")
    parser.add_argument("data", type=Path, help="folder to write")
    parser.add_argument("--train", nargs="+", default=["train-clean-100"], help="subsets")
    args = parser.parse_args()
    root = args.root.resolve()
    if not root.is_dir():
        sys.exit(f"{root} is not a folder")
    args.data.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        train = [each for name in args.train for each in read_subset(root, name, pool)]
        write_split(args.data, "train", root, train)
        for subset in EVALUATION:
            if (root / subset).is_dir():
                split = subset.replace("-", "_")
                write_split(args.data, split, root, read_subset(root, subset, pool))
            else:
                print(f"{subset}: not there")
    write_dictionary(args.data, [text for _, _, text in train], LETTERS)


if __name__ == "__main__":
    main()
