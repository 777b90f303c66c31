"""What fairseq-generate is given: hypotheses, as dicts in fairseq's form."""

import numpy as np
import torch

from fairseq_speedup.decoding.language.words import Words


def from_path(labels: torch.Tensor, scores: torch.Tensor, blank: int) -> dict:
    """Merges a path, a label for each frame, into a hypothesis.

    Args:
        labels: (T,), the label of each frame
        scores: (T,), its log-probability in nats
        blank: index of the blank
    Returns:
        ``tokens`` (N,); ``score``, the log-probability of the whole path, blanks included, and
        ``acoustic_score``, here the same; ``positional_scores`` (N,), the log-probability of each
        token's own frames; ``frames`` (N, 2), each token's first frame and the one after its last;
        ``alignment``, a list of (frame, token) pairs, the first frame of each token
    """
    runs, lengths = torch.unique_consecutive(labels, return_counts=True)
    ends = lengths.cumsum(0)
    starts = ends - lengths
    run_of_frame = torch.repeat_interleave(torch.arange(len(runs)), lengths)
    run_scores = torch.zeros(len(runs), dtype=scores.dtype).index_add_(0, run_of_frame, scores)
    spoken = runs != blank
    frames = torch.stack([starts, ends], dim=1)[spoken]
    score = scores.sum().item()
    return {
        "tokens": runs[spoken],
        "score": score,
        "acoustic_score": score,
        "lm_score": 0.0,
        "positional_scores": run_scores[spoken],
        "frames": frames,
        "alignment": alignment(frames),
        "attention": None,
    }


class Decoded:
    """A :class:`~fairseq_speedup.decoding.decoder.Batch` that is decoded."""

    seconds_elsewhere = 0.0  # spent on it by other processes

    def __init__(self, nbest: list[list[dict]]):
        self.nbest = nbest

    def wait(self) -> None:
        """Until other processes are done with it."""

    def hypotheses(self) -> list[list[dict]]:
        """For each utterance its n-best list."""
        return self.nbest


def alignment(frames: torch.Tensor) -> list[tuple[int, int]]:
    """(first frame, token) pairs of token spans ``frames`` (N, 2), for --print-alignment hard."""
    return [(frame, token) for token, frame in enumerate(frames[:, 0].tolist())]


def without_empty_words(hypothesis: dict, words: Words) -> dict:
    """A hypothesis with one boundary between words where it has several in a row, which fairseq
    would print as as many blanks."""
    symbols = [words.symbols[token] for token in hypothesis["tokens"].tolist()]
    kept = torch.tensor(words.says_something(symbols), dtype=torch.bool)
    if kept.all():
        return hypothesis
    fewer = {name: hypothesis[name][kept] for name in ("tokens", "positional_scores", "frames")}
    return hypothesis | fewer | {"alignment": alignment(fewer["frames"])}


def moved(hypothesis: dict, frames: np.ndarray) -> dict:
    """A hypothesis of a shortened utterance, in the frames of the whole one.

    Args:
        frames: (T',), the frame of the whole utterance that each one was
    """
    spans = hypothesis["frames"]
    if len(spans):
        first, last = frames[spans[:, 0].numpy()], frames[spans[:, 1].numpy() - 1]
        spans = torch.from_numpy(np.stack([first, last + 1], axis=1))
    return hypothesis | {"frames": spans, "alignment": alignment(spans)}
