"""Whether a difference in WER is more than chance: a paired bootstrap (Bisani and Ney, 2004)."""

from dataclasses import dataclass
from statistics import mean

import numpy as np

from fairseq_speedup.report.runs import Row, rates_of

RESAMPLES = 10_000
CHUNK = 500  # resamples at once
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """In points of WER, of the mean over seeds.

    least, most: bounds of the 95 % interval
    p: two-sided
    """

    points: float
    least: float
    most: float
    p: float


def difference(row: Row, baseline: Row, seed: int = 0) -> Difference:
    """Resamples utterances, the same for both, and the seeds of each where it has several.

    Raises:
        ValueError: they were decoded on other data
    """
    if not np.array_equal(row.words, baseline.words):
        raise ValueError(f"{row.name} and {baseline.name} were decoded on other data")
    return difference_of(row.errors, baseline.errors, row.words, seed)


def difference_of(errors, baseline_errors, words, seed: int = 0) -> Difference:
    """
    Args:
        errors, baseline_errors: (seeds, U), of each utterance
        words: (U,), of its reference
    """
    both = (errors, baseline_errors)
    rng = np.random.default_rng(seed)
    num_utterances = len(words)
    found = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.multinomial(num_utterances, np.full(num_utterances, 1 / num_utterances), CHUNK)
        num_words = np.maximum(1, drawn @ words)
        points = [100 * _resampled(each, drawn, rng) / num_words for each in both]
        found.append(points[0] - points[1])
    found = np.concatenate(found)
    tail = 100 * (1 - CONFIDENCE) / 2
    least, most = np.percentile(found, [tail, 100 - tail])
    p = 2 * min((found <= 0).mean(), (found >= 0).mean())
    rate, baseline_rate = (mean(rates_of(each, words)) for each in both)
    return Difference(rate - baseline_rate, float(least), float(most), min(1.0, float(p)))


def _resampled(errors: np.ndarray, drawn: np.ndarray, rng) -> np.ndarray:
    """Errors (resamples,), the mean over seeds drawn anew for each."""
    by_seed = drawn @ errors.T  # (resamples, seeds)
    num_seeds = by_seed.shape[1]
    chosen = rng.integers(num_seeds, size=by_seed.shape)
    return np.take_along_axis(by_seed, chosen, axis=1).mean(axis=1)
