"""Long recordings, in windows that overlap: the encoder sees one window at a time, and what it
gives is joined where both windows are sure that nothing is said."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch

from fairseq_speedup.lengths import FrameGrid

SEAM_FRAMES = 5  # that must be blank on either side of a seam


@dataclass(frozen=True)
class Windows:
    """
    size: samples of a window
    hop: samples from the beginning of one to the next, a multiple of ``grid``'s step, so that all
        windows' frames lie on one grid
    grid: of the logit frames
    blank: index of the blank
    at_once: windows in one forward pass
    """

    size: int
    hop: int
    grid: FrameGrid
    blank: int
    at_once: int = 1

    @classmethod
    def of_seconds(
        cls,
        seconds: float,
        overlap: float,
        sample_rate: int,
        grid: FrameGrid,
        logit_upsample: int,
        blank: int,
        at_once: int = 1,
    ) -> "Windows":
        """Rounded to whole frames, those before logit upsampling.

        Args:
            seconds: of a window
            overlap: seconds that a window shares with the next
            sample_rate: in Hz
        """
        unit = grid.step.numerator * logit_upsample
        hop = max(1, round((seconds - overlap) * sample_rate / unit)) * unit
        return cls(hop + round(overlap * sample_rate), hop, grid, blank, at_once)

    @property
    def num_frames(self) -> int:
        """Logit frames of a window, about."""
        return int(self.size / self.grid.step)

    def by(self, at_once: int) -> "Windows":
        """The same with ``at_once`` windows in one forward pass."""
        return replace(self, at_once=at_once)

    def spans(self, num_samples: int) -> list[tuple[int, int]]:
        """(first sample, the one after the last) of each window of a recording; only the last may
        be shorter, and it is longer than an overlap."""
        starts = range(0, max(1, num_samples - (self.size - self.hop)), self.hop)
        return [(start, min(start + self.size, num_samples)) for start in starts]

    def joined(self, emissions: list[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            emissions: log-probabilities (frames, V) of each window, in order
        Returns:
            (T, V) of the whole recording: each frame is one window's
        """
        offset = int(self.hop / self.grid.step)  # exact: see of_seconds
        parts, begin = [], 0  # frame of the window that its part begins with
        for before, after in itertools.pairwise(emissions):
            seam = seam_of(before[offset:], after[: len(before) - offset], self.blank)
            parts.append(before[begin : offset + seam])
            begin = seam
        parts.append(emissions[-1][begin:])
        return torch.cat(parts)


def seam_of(before: torch.Tensor, after: torch.Tensor, blank: int) -> int:
    """Where to go from one window to the next: the frame of the middle half of what they share
    around which both are surest of blank, so that no label is taken twice or lost.

    Args:
        before, after: log-probabilities (frames, V) of the frames that both windows have
    Returns:
        first frame to be taken from ``after``
    """
    sure = torch.minimum(before[:, blank], after[:, blank]).float().cpu().numpy()
    return surest_blank(sure, len(sure) // 4, len(sure) - len(sure) // 4)


def surest_blank(
    log_probs: np.ndarray, first: int, last: int, preferred: np.ndarray | None = None
) -> int:
    """The frame of ``first`` to ``last`` (excluded) around which the least log-probability of blank
    is the highest; of several, the one nearest to their middle.

    Args:
        log_probs: (T,), of blank
        preferred: (T,), frames of which it is one, where there is any
    """
    reach = np.pad(log_probs, SEAM_FRAMES, mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(reach, 2 * SEAM_FRAMES + 1)
    least = around.min(axis=1)[first:last]
    if preferred is not None and preferred[first:last].any():
        least = np.where(preferred[first:last], least, -np.inf)
    best = np.flatnonzero(least >= least.max() - 1e-3)
    middle = (last - first) / 2
    return first + int(best[np.abs(best - middle).argmin()])


def parts_of(
    blank_log_probs: np.ndarray, longest: int, between_words: np.ndarray | None = None
) -> list[tuple[int, int]]:
    """Cuts a recording for a beam search, whose memory grows with its frames: at the surest blanks,
    between words where that can be.

    Args:
        blank_log_probs: (T,), of blank
        longest: frames of a part
        between_words: (T,), frames before which words are whole
    Returns:
        (first frame, the one after the last) of each part
    """
    spans, start, total = [], 0, len(blank_log_probs)
    while total - start > longest:
        middle, last = start + longest // 2, start + longest
        end = surest_blank(blank_log_probs, middle, last, between_words)
        spans.append((start, end))
        start = end
    return [*spans, (start, total)]
