"""Makes a small speech corpus with exact transcripts: manifests, labels and audio for fairseq.

    python make_corpus.py FOLDER

Sentences come from a small grammar and are split by their hash, so that no sentence is in two
splits; the voices of the test split speak in no other.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import soundfile
from labels import write_dictionary, write_manifest
from scipy.signal import resample_poly
from synthesiser import Synthesiser
from voices import ACCENTS, VOICES

SAMPLE_RATE = 16000
SEED = 1

GRAMMAR = [
    ["anna", "peter", "my sister", "the doctor", "his teacher", "our neighbour", "the farmer"],
    ["bought", "found", "carried", "painted", "washed", "counted", "sold", "lost"],
    ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    ["red", "green", "yellow", "old", "heavy", "little", "broken", "clean"],
    ["boxes", "chairs", "apples", "bottles", "horses", "windows", "letters", "books", "baskets"],
    [
        "in the garden",
        "near the river",
        "at the market",
        "on monday",
        "before lunch",
        "last winter",
    ],
]

NUM_UTTERANCES = {"train": 1500, "valid": 100, "test": 300}
WORDS_PER_MINUTE = (100, 150)
PITCHES = (20, 80)


def split_of(sentence: str) -> str:
    """The split a sentence belongs to: one in eight is for test, one in eight for validation."""
    bucket = hashlib.sha256(sentence.encode()).digest()[0] % 8
    return {0: "test", 1: "valid"}.get(bucket, "train")


def sentences() -> dict[str, list[str]]:
    """Every sentence of the grammar, by split."""
    found = {split: [] for split in NUM_UTTERANCES}
    for words in itertools.product(*GRAMMAR):
        sentence = " ".join(words)
        found[split_of(sentence)].append(sentence)
    return found


def plan() -> dict[str, list[dict]]:
    """What is spoken, by whom and how: reproducible from SEED alone."""
    rng = np.random.default_rng(SEED)
    planned = {}
    for split, available in sentences().items():
        chosen = rng.choice(available, size=NUM_UTTERANCES[split], replace=False)
        planned[split] = [
            {
                "text": str(text),
                "voice": f"{rng.choice(ACCENTS)}+{rng.choice(VOICES[split])}",
                "words_per_minute": int(rng.integers(*WORDS_PER_MINUTE)),
                "pitch": int(rng.integers(*PITCHES)),
                "seed": int(rng.integers(2**31)),
            }
            for text in chosen
        ]
    return planned


def write_split(
    folder: Path, root: Path, split: str, utterances: list[dict], synthesiser: Synthesiser
) -> None:
    """Writes a split into ``folder``, its manifest for audio that will lie in ``root``."""
    audio = folder / "audio" / split
    audio.mkdir(parents=True)
    rows = []
    for index, utterance in enumerate(utterances):
        waveform = synthesiser.speak(**utterance)
        waveform = resample_poly(waveform, SAMPLE_RATE, synthesiser.sample_rate)
        name = f"{split}/{split}-{index:04d}.wav"
        soundfile.write(folder / "audio" / name, waveform, SAMPLE_RATE, subtype="PCM_16")
        rows.append((name, len(waveform), utterance["text"]))
    write_manifest(folder, root, split, rows)
    seconds = sum(num_samples for _, num_samples, _ in rows) / SAMPLE_RATE
    print(f"{split}: {len(utterances)} utterances, {seconds / 60:.1f} minutes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    planned = plan()
    # the folder too: manifests hold absolute paths, so a moved corpus is another one
    fingerprint = hashlib.sha256(json.dumps([str(folder), planned]).encode()).hexdigest()
    stamp = folder / "corpus.sha256"
    if stamp.exists() and stamp.read_text() == fingerprint:
        print(f"the corpus in {folder} is complete")
        return
    if folder.exists():
        sys.exit(f"{folder} exists and is not the corpus that would be made there: remove it")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    synthesiser = Synthesiser()
    for split, utterances in planned.items():
        write_split(part, folder / "audio", split, utterances, synthesiser)
    write_dictionary(part, [utterance["text"] for utterance in planned["train"]])
    (part / stamp.name).write_text(fingerprint)
    part.rename(folder)


if __name__ == "__main__":
    main()
