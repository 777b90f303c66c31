"""When words are said, from the frames of their labels."""

import itertools
from dataclasses import dataclass

from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.lengths import FrameGrid

LONGEST_EXTENSION = 0.08  # seconds


@dataclass
class TimedWord:
    """start, end: in seconds from the beginning of the utterance"""

    word: str
    start: float
    end: float


def word_times(
    hypothesis: dict, words: Words, grid: FrameGrid, num_samples: int, sample_rate: int
) -> list[TimedWord]:
    """A word lasts from the first frame of its first label to the last frame of its last one, and
    half of the time to its neighbours, 80 ms at most: CTC writes a label for a frame or two of its
    sound, and blanks around it.

    Args:
        hypothesis: with ``tokens`` (N,) and ``frames`` (N, 2)
        words: of the labels
        grid: of the logit frames
        num_samples: of the utterance
        sample_rate: in Hz
    """
    symbols = [words.symbols[token] for token in hypothesis["tokens"].tolist()]
    frames = hypothesis["frames"].tolist()
    duration = num_samples / sample_rate

    def seconds(frame: int) -> float:
        return min(max(float(grid.start(frame)) / sample_rate, 0.0), duration)

    placed = zip(words.of(symbols), words.spans(symbols), strict=True)
    timed = [
        TimedWord(word, seconds(frames[first][0]), seconds(frames[end - 1][1]))
        for word, (first, end) in placed
    ]
    if timed:
        timed[0].start -= min(timed[0].start, LONGEST_EXTENSION)
        timed[-1].end += min(duration - timed[-1].end, LONGEST_EXTENSION)
    for before, after in itertools.pairwise(timed):
        extension = min((after.start - before.end) / 2, LONGEST_EXTENSION)
        before.end += extension
        after.start -= extension
    return timed
