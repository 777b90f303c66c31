"""Adds a test set of recorded speech to a corpus: the English telephone prompts of Asterisk.

    python recorded_prompts.py ROOT FOLDER

ROOT has the files of Debian's packages asterisk-core-sounds-en and asterisk-core-sounds-en-g722
(CC BY-SA 3.0, read by Allison Smith, Digium, Inc.), FOLDER a corpus of make_corpus.py. The set,
test_prompts, is one professional speaker in a studio, coded with G.722 at 16 kHz. Prompts with
digits or sounds are left out, so are single letters and numbers.
"""

import argparse
import gzip
import re
import sys
from pathlib import Path

import books
import engines  # noqa: F401 -- finds the quickstart's modules
import numpy as np
import soundfile
from augmentation import SAMPLE_RATE
from labels import write_manifest

SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
BITS_PER_SECOND = 64000
SECONDS = (1.0, 30.0)
# digits, remarks in brackets, and names that no rule says how to read
UNREADABLE = re.compile(r"[^A-Za-z ,;:.!?'\"-]|\b[A-Z]{2,}\b")
# single letters and numbers, and the names of protocols
LEFT_OUT = ("digits/", "letters/", "phonetic/", "silence/", "spy-")


def transcripts(root: Path) -> dict[str, str]:
    """Prompts that can be labelled with letters, by name."""
    found = {}
    for line in gzip.decompress((root / TRANSCRIPTS).read_bytes()).decode().splitlines():
        name, separator, text = line.partition(": ")
        if not separator or name.startswith((";", *LEFT_OUT)):
            continue
        if not UNREADABLE.search(text) and books.words(text):
            found[name] = books.words(text)
    return found


def decode(encoded: bytes) -> np.ndarray:
    """int16 samples (S,) at 16 kHz"""
    from G722 import G722

    return np.asarray(G722(SAMPLE_RATE, BITS_PER_SECOND).decode(encoded), np.int16)


def add_prompts(root: Path, folder: Path) -> list[tuple[str, int, str]]:
    """Writes the audio; the rows of the manifest."""
    rows = []
    for name, sentence in sorted(transcripts(root).items()):
        source = root / SOUNDS / f"{name}.g722"
        if not source.exists():
            continue
        samples = decode(source.read_bytes())
        if not SECONDS[0] <= len(samples) / SAMPLE_RATE <= SECONDS[1]:
            continue
        path = f"test_prompts/{name.replace('/', '-')}.flac"
        (folder / "audio" / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "audio" / path, samples, SAMPLE_RATE)
        rows.append((path, len(samples), sentence))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    folder = args.folder.resolve()
    for needed in (args.root / TRANSCRIPTS, args.root / SOUNDS, folder / "train.tsv"):
        if not needed.exists():
            sys.exit(f"{needed} is missing")
    rows = add_prompts(args.root, folder)
    write_manifest(folder, folder / "audio", "test_prompts", rows)
    minutes = sum(num_samples for _, num_samples, _ in rows) / SAMPLE_RATE / 60
    print(f"test_prompts: {len(rows)} utterances, {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
