"""Manifests and letters of AN4, as fairseq wants them, from the folder as it is unpacked.

    python prepare.py /path/to/an4 DATA [--skip]

Audio is NIST SPHERE, WAV, FLAC or headerless 16-bit .raw of either byte order. Writes
{train,valid,test}.{tsv,ltr,wrd} and dict.ltr.txt; valid is every ninth speaker of train, by name.
"""

import argparse
import re
import sys
from argparse import Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "recorded"))

from faults import Faults
from recorded import Corpus, Utterance, prepare, read_lines

ENDINGS = (".sph", ".wav", ".flac", ".raw")
TRANSCRIPT = re.compile(r"(.*)\((\S+)\)")  # <s> TEXT </s> (utterance)
NO_WORDS = {"<S>", "</S>", "<SIL>"}  # in capitals


def read(root: Path, split: str, args: Namespace, faults: Faults) -> list[Utterance]:
    texts_file, files_file = (
        root / "etc" / f"an4_{split}.{kind}" for kind in ("transcription", "fileids")
    )
    texts = read_texts(texts_file, faults)
    found = []
    for line in read_lines(files_file):
        path = root / "wav" / line
        if path.name in texts:
            text = texts[path.name]
            found.append(Utterance(path.name, path.parent.name, audio_of(path), text))
        else:
            faults.add("recordings have no text", f"See {texts_file}.", path.name)
    for name in sorted(set(texts) - {each.name for each in found}):
        faults.add("texts are of no recording", f"See {files_file}.", name)
    return found


def read_texts(path: Path, faults: Faults) -> dict[str, str]:
    """Texts by utterance."""
    texts = {}
    for number, line in enumerate(read_lines(path), start=1):
        parts = TRANSCRIPT.fullmatch(line)
        if parts is None:
            remedy = "A line is '<s> TEXT </s> (utterance)'."
            faults.add("lines are no transcripts", remedy, f"{path}, line {number}: {line!r}")
            continue
        words, name = parts.groups()
        if name in texts:
            faults.add("texts are there twice", f"Leave one of them in {path}.", name)
        texts[name] = " ".join(word for word in words.upper().split() if word not in NO_WORDS)
    return texts


def audio_of(path: Path) -> Path:
    """The file of an utterance, whose path in the lists has no ending."""
    there = [path.with_name(path.name + ending) for ending in ENDINGS]
    return next((each for each in there if each.is_file()), there[0])


def main(parser: argparse.ArgumentParser) -> None:
    prepare(Corpus("AN4", read, {"train": 948, "test": 130}, valid_every=9), parser)


if __name__ == "__main__":
    main(argparse.ArgumentParser(description=__doc__))
