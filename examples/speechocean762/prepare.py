"""Manifests and letters of speechocean762, as fairseq wants them, from its folder as unpacked.

    python prepare.py /path/to/speechocean762 DATA [--min-age 18] [--skip]

Reads {train,test}/{text,wav.scp,utt2spk}, and spk2age for --min-age. Writes
{train,valid,test}.{tsv,ltr,wrd} and dict.ltr.txt; valid is every eighth speaker of train, by name.
"""

import argparse
import sys
from argparse import Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "recorded"))

from faults import Faults
from recorded import Corpus, Utterance, prepare, read_lines


def read(root: Path, split: str, args: Namespace, faults: Faults) -> list[Utterance]:
    folder = root / split
    texts, files, speakers = (
        read_table(folder / name, faults) for name in ("text", "wav.scp", "utt2spk")
    )
    adults = None
    if args.min_age is not None:
        adults = old_enough(folder / "spk2age", args.min_age, faults)
    found = []
    for name, file in files.items():
        if file.endswith("|"):
            remedy = "Run it, and name the file that it writes."
            faults.add("entries of wav.scp are commands", remedy, f"{name} {file}")
        elif name not in texts or name not in speakers:
            lacking = folder / ("text" if name not in texts else "utt2spk")
            faults.add("recordings have no line in a list", f"See {lacking}.", name)
        elif adults is None or speakers[name] in adults:
            text = " ".join(texts[name].upper().split())
            found.append(Utterance(name, speakers[name], root / file, text))
    for name in sorted(set(texts) - set(files)):
        faults.add("texts are of no recording", f"See {folder / 'wav.scp'}.", name)
    return found


def read_table(path: Path, faults: Faults) -> dict[str, str]:
    """The rest of each line by its first word, as Kaldi's lists are."""
    table: dict[str, str] = {}
    for line in read_lines(path):
        key, *rest = line.split(maxsplit=1)
        if key in table:
            faults.add("keys are there twice", f"Leave one of them in {path}.", key)
        table[key] = rest[0] if rest else ""
    return table


def old_enough(path: Path, min_age: int, faults: Faults) -> set[str]:
    """Speakers of that age or more."""
    found = set()
    for speaker, age in read_table(path, faults).items():
        if not age.isdigit():
            faults.add("ages are no numbers", f"See {path}.", f"{speaker} {age!r}")
        elif int(age) >= min_age:
            found.add(speaker)
    return found


def main(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--min-age", type=int, metavar="YEARS", help="leave out younger speakers")
    published = {"train": 2500, "test": 2500}
    prepare(Corpus("speechocean762", read, published, valid_every=8), parser)


if __name__ == "__main__":
    main(argparse.ArgumentParser(description=__doc__))
