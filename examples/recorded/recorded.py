"""What the recipes for corpora of recorded speech share: from a list of utterances, as a corpus's
own files give it, to manifests, letters and a dictionary for fairseq.

Manifests are written when all texts and recordings have been checked, and ``prepared.json`` last:
it says that a folder is complete, and of what.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "quickstart"))

from audio import SAMPLE_RATE, taken
from faults import Faults
from labels import write_dictionary, write_lines, write_manifest

from fairseq_speedup.data.characters import told_apart
from fairseq_speedup.data.manifest import ManifestError
from fairseq_speedup.data.manifest import read_lines as lines_of
from fairseq_speedup.data.recording import RecordingError

# in the order of examples/recorded/hubert_ctc.pt, whose head is fine-tuned on
LETTERS = "|'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPLITS = ("train", "valid", "test")
TENTH = "train_tenth"  # every tenth utterance of train, of nearly all speakers: few labels
STAMP = "prepared.json"
UNPACK = "Unpack the archive again: it was cut off or changed."


@dataclass(frozen=True)
class Utterance:
    """
    name: in the corpus
    audio: file, which need not be there
    text: words between single spaces, in capitals
    """

    name: str
    speaker: str
    audio: Path
    text: str


@dataclass(frozen=True)
class Corpus:
    """
    read: ``read(root, split, args, faults)`` lists the utterances of ``train`` or ``test``, and
        adds to the faults what it cannot list
    published: utterances that the two have as the corpus is published
    valid_every: validation is the first of each so many training speakers, sorted by name
    """

    name: str
    read: Callable[[Path, str, argparse.Namespace, Faults], list[Utterance]]
    published: dict[str, int]
    valid_every: int


def read_lines(path: Path) -> list[str]:
    """Lines without blanks around them, and without empty ones."""
    if not path.is_file():
        within = [each.parent.parent for each in path.parents[1].glob(f"*/*/{path.name}")]
        instead = f"; {within[0]} looks like that folder" if within else ""
        raise SystemExit(
            f"{path} does not exist: is the archive unpacked whole, and is {path.parents[1]} the "
            f"folder that it unpacks to{instead}?"
        )
    try:
        lines = [line.strip() for line in lines_of(str(path))]
    except (ManifestError, OSError) as error:
        raise SystemExit(f"{path} cannot be read: {error}. {UNPACK}") from None
    if not any(lines):
        raise SystemExit(f"{path} is empty. {UNPACK}")
    return list(filter(None, lines))


def usable(listed: list[Utterance], where: str, faults: Faults) -> list[Utterance]:
    """Those with a name of their own and a text of letters.

    Args:
        where: the corpus has their texts, for messages
    """
    kept: dict[str, Utterance] = {}
    for each in listed:
        unknown = sorted(set(each.text) - set(LETTERS[1:]) - {" "})
        if each.name in kept:
            faults.add("utterances are listed twice", f"Leave one of them in {where}.", each.name)
        elif unknown:
            faults.add(
                "texts have symbols that are no letters",
                f"Letters are A to Z and ': write numbers and signs as words in {where}.",
                f"{each.name} has {told_apart(unknown, LETTERS)}",
            )
        elif not each.text:
            faults.add("texts have no words", f"See {where}.", each.name)
        else:
            kept[each.name] = each
    return list(kept.values())


def split_by_speaker(
    corpus: Corpus, root: Path, args: argparse.Namespace, faults: Faults
) -> dict[str, list[Utterance]]:
    """Utterances of the three splits, none with a fault. Whose they are does not depend on what is
    left out."""
    listed, kept = {}, {}
    for split, published in corpus.published.items():
        listed[split] = corpus.read(root, split, args, faults)
        kept[split] = usable(listed[split], f"{split}'s texts", faults)
        if len(listed[split]) != published:
            print(
                f"note: {split} lists {len(listed[split])} utterances, {corpus.name} as published "
                f"has {published}: another version or a part of it, so that WERs can be compared "
                "with those of the same utterances alone"
            )
    speakers = sorted({each.speaker for each in listed["train"]})
    both = sorted(set(speakers) & {each.speaker for each in listed["test"]})
    if both:
        print(f"note: of the speakers of test, {', '.join(both)} are in train too")
    valid = set(speakers[:: corpus.valid_every])
    if speakers and valid == set(speakers):
        raise SystemExit(
            f"{root}: all of train is by {speakers[0]}; validation is every {corpus.valid_every}th "
            f"of train's speakers, which needs two at least. {UNPACK}"
        )
    return {
        "train": [each for each in kept["train"] if each.speaker not in valid],
        "valid": [each for each in kept["train"] if each.speaker in valid],
        "test": kept["test"],
    }


def rows_of(
    split: str, utterances: list[Utterance], root: Path, data: Path, faults: Faults
) -> list[tuple[str, int, str]]:
    """Rows of a manifest. What cannot be used is a fault and has none."""
    rows, changes = [], Counter()
    folder = data / "audio" / split
    for each in utterances:
        if not each.audio.exists():
            faults.add("audio files are not there", UNPACK, str(each.audio))
            continue
        try:
            audio = taken(each.audio, folder / f"{each.name}.flac")
        except RecordingError as error:
            faults.add("audio files cannot be used", UNPACK, str(error))
            continue
        changes[", ".join(audio.changes)] += 1
        inside = audio.path.is_relative_to(root)
        path = audio.path.relative_to(root) if inside else audio.path  # joined, it stays whole
        rows.append((str(path), audio.num_samples, each.text))
    for change, count in sorted(changes.items()):
        if change:
            print(f"{split}: {count} recordings were converted ({change}) into {folder}")
    return rows


def prepare(corpus: Corpus, parser: argparse.ArgumentParser) -> None:
    """The command of a recipe, ``prepare.py ROOT DATA [--skip]``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("root", type=Path, help=f"folder that {corpus.name} unpacks to")
    parser.add_argument("data", type=Path, help="folder to write")
    parser.add_argument("--skip", action="store_true", help="leave out what cannot be used")
    args = parser.parse_args()
    root, data = args.root.resolve(), args.data.resolve()
    if not root.is_dir():
        raise SystemExit(f"{root} is not a folder")
    faults = Faults()
    splits = split_by_speaker(corpus, root, args, faults)
    asked = hashlib.sha256(repr((root, args.skip, splits)).encode()).hexdigest()
    if is_prepared(data, asked):
        print(f"{data} is prepared already")
        return
    rows = {each: rows_of(each, splits[each], root, data, faults) for each in SPLITS}
    if faults.found and not args.skip:
        raise SystemExit(
            f"{faults.told()}\nNothing is prepared. --skip leaves these out and takes the rest"
        )
    if faults.found:
        print(f"left out:\n{faults.told()}")
    for split in SPLITS:
        if not rows[split]:
            raise SystemExit(f"{root}: no utterance of {split} can be used")
    rows[TENTH] = rows["train"][::10]
    for split in rows:
        write_manifest(data, root, split, rows[split])
        hours = sum(num_samples for _, num_samples, _ in rows[split]) / SAMPLE_RATE / 3600
        print(f"{split}: {len(rows[split])} utterances, {hours:.2f} hours", end="")
        speakers = {each.speaker for each in splits.get(split, [])}
        print(f", {len(speakers)} speakers" if speakers else "")
    write_dictionary(data, [text for _, _, text in rows["train"]], LETTERS)
    write_lines(data / STAMP, [json.dumps({"root": str(root), "asked": asked})])


def is_prepared(data: Path, asked: str) -> bool:
    """Whether that is in a folder, which is made where it is not there.

    Raises:
        SystemExit: something else is
    """
    data.mkdir(parents=True, exist_ok=True)
    stamp = data / STAMP
    if not stamp.is_file():
        return False
    found = json.loads(stamp.read_text(encoding="utf-8"))
    if found["asked"] == asked:
        return (data / f"{TENTH}.tsv").is_file()  # there was none once
    raise SystemExit(
        f"{data} was prepared of {found['root']} with other texts or options: models there have "
        "been trained on those. Give another folder, or move it away"
    )
