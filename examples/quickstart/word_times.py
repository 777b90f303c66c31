"""Compares word times with those of the synthesiser that spoke the quickstart's test voices.

    python word_times.py RESULTS/generate-test.ctm --frame-ms 20

The CTM file is what fairseq-generate ... --ctm wrote. Counted are the boundaries of words that were
recognised, in utterances without an error, where the synthesiser tells them: it runs some words
together. --frame-ms is the model's: 20 at x1, 40 at x2, 60 at x3.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from make_corpus import plan
from synthesiser import Synthesiser


def read_ctm(path: Path) -> dict[int, list[tuple[str, float, float]]]:
    """(word, start, end) in seconds, by utterance of the test split"""
    found = defaultdict(list)
    for line in path.read_text().splitlines():
        recording, _, start, duration, word = line.split()
        utterance = int(recording.rpartition("-")[2])
        found[utterance].append((word, float(start), float(start) + float(duration)))
    return found


def spoken_times(synthesiser: Synthesiser, utterance: dict) -> dict[int, float]:
    """Seconds at which words begin, by their number; the number after the last is the end."""
    synthesiser.speak(**utterance)
    words_before = {}
    position = 0
    for number, word in enumerate(utterance["text"].split()):
        words_before[position] = number
        position += len(word) + 1
    times = {
        words_before[position]: sample / synthesiser.sample_rate
        for position, sample in synthesiser.word_starts
    }
    return times | {len(words_before): synthesiser.end / synthesiser.sample_rate}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ctm", type=Path)
    parser.add_argument("--frame-ms", type=float, required=True, help="of the model")
    args = parser.parse_args()
    recognised = read_ctm(args.ctm)
    synthesiser = Synthesiser()
    errors, num_right = [], 0
    utterances = plan()["test"]
    for number, utterance in enumerate(utterances):
        words = recognised.get(number, [])
        if [word for word, _, _ in words] != utterance["text"].upper().split():
            continue
        num_right += 1
        for word, seconds in spoken_times(synthesiser, utterance).items():
            if word < len(words):
                errors.append(words[word][1] - seconds)
            if word > 0:
                errors.append(words[word - 1][2] - seconds)
    distances = 1000 * np.abs(errors)
    two_frames = 2 * args.frame_ms
    print(
        f"{num_right} of {len(utterances)} utterances, {len(errors)} boundaries: "
        f"mean distance {distances.mean():.0f} ms, 95 % within {np.percentile(distances, 95):.0f} "
        f"ms; {100 * (distances <= two_frames).mean():.1f} % within two frames, {two_frames:g} ms"
    )


if __name__ == "__main__":
    main()
