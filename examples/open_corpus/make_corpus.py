"""Makes hours of speech from public-domain books: manifests, labels and audio for fairseq.

    python make_corpus.py FOLDER [--hours 12] [--workers 2]

Four synthesisers read sentences of eight books, in simulated rooms and noise; books, voices and
rooms are each in one split only. Run again after a break, it goes on; the samples are the same.

train, valid    clean, reverberant and noisy
train_10m, train_1h   the first minutes of train, for labels
test            clean
test_noisy      the same sentences and voices, all in rooms and noise
test_other, test_other_noisy   the same of a synthesiser that is not in train
lm.txt          every sentence of the books of train
"""

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import sys
from pathlib import Path

import books
import engines
import numpy as np
import soundfile
import soxr
from augmentation import (
    NOISE_SLOPES,
    SAMPLE_RATE,
    add_noise,
    at_level,
    babble,
    coloured_noise,
    reverberate,
    room_responses,
)
from labels import write_dictionary, write_manifest
from voices import ACCENTS
from voices import VOICES as ESPEAK_VOICES

SEED = 1
HOURS = 12.0
# hours of the splits, and at most which part of all
SMALL_SPLITS = {"valid": (0.3, 0.1), "test": (0.6, 0.1), "test_noisy": (0.6, 0.1)}
LABELLED_MINUTES = {"train_10m": 10, "train_1h": 60}
SECONDS = (2.0, 15.0)  # of an utterance
CHARACTERS_PER_SECOND = 15  # to plan with

# Which part of a split each synthesiser speaks, and with which voices. "@" has a factor on the
# speed at which a voice is played: another length of the vocal tract and another pitch. The test
# has the only voice of a fourth synthesiser. Chosen once, before any training.
WARPS = (0.80, 0.84, 0.88, 0.92, 0.96, 1.0, 1.05, 1.10, 1.15, 1.20)
SPEAKERS = {
    "train": {
        "hibari": (0.45, [f"heart@{warp}" for warp in WARPS]),
        "espeak": (0.35, ESPEAK_VOICES["train"]),
        "pico": (0.20, [f"en-GB@{warp}" for warp in WARPS[::2]]),
    },
    "valid": {"espeak": (0.5, ESPEAK_VOICES["valid"]), "pico": (0.5, ["en-US@1.0"])},
    "test": {"espeak": (0.5, ESPEAK_VOICES["test"]), "piper": (0.5, ["joe@1.0"])},
}
PACES = (0.85, 1.15)
PITCHES = (0.8, 1.2)
LEVELS = (-32.0, -20.0)  # dB below full scale
# probabilities of a room and of noise, and signal-to-noise ratios in dB
CONDITIONS = {
    "train": (0.5, 0.6, (0.0, 25.0)),
    "valid": (0.5, 0.6, (0.0, 25.0)),
    "test": (0.0, 0.0, None),
    "test_noisy": (1.0, 1.0, (0.0, 15.0)),
}
NUM_ROOMS = {"train": 60, "valid": 20, "test": 20}
NUM_BABBLERS = 40  # utterances of a split's voices, from which babble is mixed
UTTERANCES_PER_JOB = 100


def speakers_of(split: str) -> str:
    """The split whose books, voices and rooms these are."""
    return split.removesuffix("_noisy")


def split_of(job: str) -> str:
    return speakers_of(job.split("/")[0])


def spoken(split: str, text: str, rng: np.random.Generator) -> dict:
    """Who says a sentence, and how."""
    speakers = SPEAKERS[speakers_of(split)]
    synthesiser = str(rng.choice(list(speakers), p=[share for share, _ in speakers.values()]))
    voice, _, warp = str(rng.choice(speakers[synthesiser][1])).partition("@")
    if synthesiser == "espeak":
        voice = f"{rng.choice(ACCENTS)}+{voice}"
    return {
        "sentence": text,
        "engine": synthesiser,
        "voice": voice,
        "warp": float(warp or 1),
        "pace": round(rng.uniform(*PACES), 3),
        "pitch": round(rng.uniform(*PITCHES), 3),
        "seed": int(rng.integers(2**31)),
    }


def conditions(split: str, rng: np.random.Generator) -> dict:
    """The room and the noise around it, None for neither."""
    room_prob, noise_prob, snrs = CONDITIONS[split]
    room = int(rng.integers(NUM_ROOMS[speakers_of(split)]))
    kind = str(rng.choice(["babble", *NOISE_SLOPES]))
    in_room, in_noise = rng.random(2) < (room_prob, noise_prob)
    return {
        "room": room if in_room else None,
        "noise": kind if in_noise else None,
        "snr_db": round(rng.uniform(*snrs), 1) if in_noise else None,
        "level_dbfs": round(rng.uniform(*LEVELS), 1),
    }


def plan_split(split: str, sentences: list[str], hours: float) -> list[dict]:
    """Utterances, about as many as fill the hours. More hours go on where fewer end."""
    name = speakers_of(split)
    number = list(SPEAKERS).index(name)
    order = np.random.default_rng([SEED, number]).permutation(len(sentences))
    planned, seconds = [], 0.0
    for index in order:
        if seconds >= hours * 3600:
            return planned
        # the same draws for test and test_noisy
        rng = np.random.default_rng([SEED, number, int(index)])
        utterance = spoken(split, sentences[index], rng) | conditions(split, rng)
        planned.append(utterance)
        seconds += len(utterance["sentence"]) / CHARACTERS_PER_SECOND / utterance["pace"]
    sys.exit(f"--hours: the books of {name} have sentences for {seconds / 3600:.1f} hours only")


def plan(hours: float, sentences: dict[str, list[str]]) -> dict[str, list[dict]]:
    """What is spoken, by whom and where: reproducible from SEED alone."""
    small = {split: min(most, hours * part) for split, (most, part) in SMALL_SPLITS.items()}
    durations = {"train": hours - sum(small.values())} | small
    return {
        split: plan_split(split, sentences[speakers_of(split)], duration)
        for split, duration in durations.items()
    }


def plan_babble(split: str, sentences: list[str]) -> list[dict]:
    """Utterances of a split's quick voices, to be mixed into noise."""
    rng = np.random.default_rng([SEED, list(SPEAKERS).index(split), 2**32])
    chosen = rng.choice(sentences, size=NUM_BABBLERS)
    utterances = (spoken(split, str(each), rng) for each in itertools.cycle(chosen))
    quick = (each for each in utterances if each["engine"] != "piper")
    return list(itertools.islice(quick, NUM_BABBLERS))


def speak(utterance: dict) -> np.ndarray:
    """The clean waveform (S,) at 16 kHz."""
    synthesiser = engines.engine(utterance["engine"])
    warp = utterance["warp"]
    waveform = synthesiser.speak(
        utterance["sentence"],
        utterance["voice"],
        utterance["pace"] / warp,
        utterance["pitch"],
        utterance["seed"],
    )
    return soxr.resample(waveform, synthesiser.sample_rate * warp, SAMPLE_RATE)


def recorded(utterance: dict, rooms: list[np.ndarray], babblers: list[np.ndarray]) -> np.ndarray:
    """As a microphone would hear it: int16 samples (S,)."""
    rng = np.random.default_rng(utterance["seed"])
    waveform = speak(utterance)
    if not waveform.any():  # nothing was said: left out later, as too short
        return np.zeros(0, np.int16)
    if utterance["room"] is not None:
        waveform = reverberate(waveform, rooms[utterance["room"]])
    kind = utterance["noise"]
    if kind is not None:
        if kind == "babble":
            noise = babble(len(waveform), babblers, rng)
        else:
            noise = coloured_noise(len(waveform), NOISE_SLOPES[kind], rng)
        waveform = add_noise(waveform, noise, utterance["snr_db"])
    return np.round(at_level(waveform, utterance["level_dbfs"]) * 32767).astype(np.int16)


def run_job(part: Path, name: str, utterances: list[dict], babblers: list[dict]) -> str:
    """Writes a job's audio, and then its record."""
    with np.load(part / "rooms" / f"{split_of(name)}.npz") as stored:
        rooms = [stored[key] for key in stored.files]
    voices = [voice for voice in map(speak, babblers) if voice.any()]
    records = []
    for number, utterance in enumerate(utterances):
        samples = recorded(utterance, rooms, voices)
        path = f"{name}-{number:02d}-{utterance['engine']}-{utterance['voice']}.flac"
        target = part / "audio" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, samples, SAMPLE_RATE)
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        records.append({"path": path, "num_samples": len(samples), "sha256": digest} | utterance)
    record = part / "jobs" / f"{name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_suffix(".part")
    unfinished.write_text(json.dumps(records))
    unfinished.rename(record)
    return name


def jobs_of(planned: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Utterances by the name of their job."""
    return {
        f"{split}/{first // UTTERANCES_PER_JOB:03d}": utterances[first : first + UTTERANCES_PER_JOB]
        for split, utterances in planned.items()
        for first in range(0, len(utterances), UTTERANCES_PER_JOB)
    }


def write_rooms(part: Path) -> None:
    (part / "rooms").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(NUM_ROOMS.items()):
        target = part / "rooms" / f"{split}.npz"
        if not target.exists():
            responses = room_responses(count, np.random.default_rng([SEED, number]))
            unfinished = target.with_suffix(".part.npz")
            np.savez(unfinished, *responses)
            unfinished.rename(target)


def run_jobs(part: Path, jobs: dict, babblers: dict, workers: int) -> None:
    """Those without a record yet, each in a new process: see ``engines`` on the state."""
    left = [name for name in jobs if not (part / "jobs" / f"{name}.json").exists()]
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        futures = [
            pool.submit(run_job, part, name, jobs[name], babblers[split_of(name)]) for name in left
        ]
        try:
            finished = concurrent.futures.as_completed(futures)
            for count, future in enumerate(finished, len(jobs) - len(left) + 1):
                print(f"{count} of {len(jobs)} jobs: {future.result()}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def read_records(part: Path, jobs: dict) -> dict[str, list[dict]]:
    """What was made, by split and in order, without utterances that came out too short or long."""
    records = {}
    for name in jobs:
        made = json.loads((part / "jobs" / f"{name}.json").read_text())
        low, high = (seconds * SAMPLE_RATE for seconds in SECONDS)
        fitting = [each for each in made if low <= each["num_samples"] <= high]
        records.setdefault(name.split("/")[0], []).extend(fitting)
    return records


def first_minutes(records: list[dict], minutes: float) -> list[dict]:
    """The shortest beginning that lasts as long."""
    ends = np.cumsum([each["num_samples"] for each in records])
    return records[: int(np.searchsorted(ends, minutes * 60 * SAMPLE_RATE)) + 1]


def labelled_subsets(records: list[dict]) -> dict[str, list[dict]]:
    """Beginnings of train, those that it is long enough for."""
    minutes = sum(each["num_samples"] for each in records) / SAMPLE_RATE / 60
    return {
        subset: first_minutes(records, wanted)
        for subset, wanted in LABELLED_MINUTES.items()
        if wanted < minutes
    }


def by_synthesiser(records: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The splits, those of the test in two: synthesisers that train has too, and others."""
    known = SPEAKERS["train"]
    splits = {}
    for split, utterances in records.items():
        name, noisy, _ = split.partition("_noisy")
        for each in utterances:
            is_known = each["engine"] in known
            splits.setdefault(split if is_known else f"{name}_other{noisy}", []).append(each)
    return splits


def write_splits(part: Path, root: Path, records: dict[str, list[dict]]) -> None:
    """Manifests, labels, dictionary and the list of all that is known of each utterance."""
    splits = by_synthesiser(records) | labelled_subsets(records["train"])
    for split, utterances in splits.items():
        rows = [
            (each["path"], each["num_samples"], books.words(each["sentence"]))
            for each in utterances
        ]
        write_manifest(part, root, split, rows)
        hours = sum(num_samples for _, num_samples, _ in rows) / SAMPLE_RATE / 3600
        print(f"{split}: {len(rows)} utterances, {hours:.2f} hours")
    write_dictionary(part, [books.words(each["sentence"]) for each in records["train"]])
    lines = [json.dumps(each) for utterances in records.values() for each in utterances]
    (part / "utterances.jsonl").write_text("".join(f"{line}\n" for line in lines))
    digests = [each["sha256"] for utterances in records.values() for each in utterances]
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    (part / "audio.sha256").write_text(f"{digest}\n")
    print(f"all samples: sha256 {digest}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=HOURS, help="of audio in all, about")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if not 0 < args.hours < math.inf:
        parser.error(f"--hours: {args.hours:g} is not a positive number")
    if args.workers < 1:
        parser.error(f"--workers: {args.workers} is not a positive number")
    folder = args.folder.resolve()
    sentences = {
        split: books.sentences("\n\n".join(map(books.read_book, names)))
        for split, names in books.BOOKS.items()
    }
    planned = plan(args.hours, sentences)
    babblers = {split: plan_babble(split, sentences[split]) for split in SPEAKERS}
    # the folder too: manifests hold absolute paths, so a moved corpus is another one
    fingerprint = hashlib.sha256(json.dumps([str(folder), planned, babblers]).encode()).hexdigest()
    stamp = folder / "corpus.sha256"
    if stamp.exists() and stamp.read_text() == fingerprint:
        print(f"the corpus in {folder} is complete")
        return
    if folder.exists():
        sys.exit(f"{folder} exists and is not the corpus that would be made there: remove it")
    part = folder.with_name(folder.name + ".part")
    started = part / stamp.name
    if part.exists() and not (started.exists() and started.read_text() == fingerprint):
        sys.exit(f"{part} holds a part of another corpus: remove it")
    part.mkdir(parents=True, exist_ok=True)
    started.write_text(fingerprint)
    write_rooms(part)
    jobs = jobs_of(planned)
    run_jobs(part, jobs, babblers, args.workers)
    write_splits(part, folder / "audio", read_records(part, jobs))
    lm_text = (books.words(sentence).upper() for sentence in sentences["train"])
    (part / "lm.txt").write_text("".join(f"{line}\n" for line in lm_text))
    part.rename(folder)


if __name__ == "__main__":
    main()
