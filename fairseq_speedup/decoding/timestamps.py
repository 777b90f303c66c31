"""When words are said, from the frames of their labels."""

from dataclasses import dataclass

from fairseq_speedup.decoding.words import Words
from fairseq_speedup.lengths import FrameGrid


@dataclass
class TimedWord:
    """start, end: in seconds from the beginning of the utterance"""

    word: str
    start: float
    end: float


def word_times(
    hypothesis: dict, words: Words, grid: FrameGrid, num_samples: int, sample_rate: int
) -> list[TimedWord]:
    """A word lasts from the first frame of its first label to the last frame of its last one.

    CTC says when a label is recognised rather than when its sound begins and ends: labels are short,
    with blanks between them.

    Args:
        hypothesis: with ``tokens`` (N,) and ``frames`` (N, 2)
        words: of the labels
        grid: of the logit frames
        num_samples: of the utterance
        sample_rate: in Hz
    """
    symbols = [words.symbols[token] for token in hypothesis["tokens"].tolist()]
    frames = hypothesis["frames"].tolist()

    def seconds(frame: int) -> float:
        return float(min(max(grid.start(frame), 0), num_samples) / sample_rate)

    return [
        TimedWord(
            "".join(words.of(symbols[first:end])),
            seconds(frames[first][0]),
            seconds(frames[end - 1][1]),
        )
        for first, end in words.spans(symbols)
    ]
