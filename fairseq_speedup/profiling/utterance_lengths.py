"""Lengths of utterances, as they are given to ``profile``."""

import sys

import numpy as np

from fairseq_speedup.data.manifest import ManifestError, read_lines
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

MAX_SECONDS = 3600  # of one utterance


def read_lengths(args) -> np.ndarray:
    """Lengths in samples: of --lengths, a manifest or seconds line by line, or of --seconds."""
    if args.lengths is None:
        lines, source = args.seconds.split(","), "--seconds"
    elif args.lengths == "-":
        lines, source = sys.stdin.read().split("\n"), "standard input"
    else:
        lines, source = read_lines(args.lengths), args.lengths
    num_samples = []
    is_manifest = len(lines) > 1 and "\t" in lines[1]
    for number, line in enumerate(lines[1:] if is_manifest else lines, start=1 + is_manifest):
        if not line.strip():
            continue
        try:
            if is_manifest:
                num_samples.append(int(line.split("\t")[1]))
            else:
                num_samples.append(round(float(line) * SAMPLE_RATE_HZ))
        except (ValueError, OverflowError, IndexError):
            raise ManifestError(
                f"{source}, line {number}: expected a length in seconds (or, in a manifest, "
                f"'path<TAB>samples'), found {line!r}"
            ) from None
    if (
        not num_samples
        or not 0 < min(num_samples) <= max(num_samples) <= MAX_SECONDS * SAMPLE_RATE_HZ
    ):
        raise ManifestError(
            f"{source}: no lengths, or one that is not above 0 and at most {MAX_SECONDS} seconds"
        )
    return np.array(num_samples)
