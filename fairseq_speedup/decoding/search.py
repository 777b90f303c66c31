"""What every beam search takes and gives."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np


@dataclass
class Found:
    """One hypothesis of a search over T frames.

    path: (T,), a label for each frame
    score: what the search ranks by, in nats; it is acoustic_score + lm_weight * lm_score
        + word_score * num_words + sil_score * the path's frames of silence
    acoustic_score: log-probability in nats, of the best alignment or summed over all, as the search
        says
    lm_score: log10-probability, 0 without a language model
    num_words: words that word_score counts, 0 without a lexicon
    """

    path: np.ndarray
    score: float
    acoustic_score: float
    lm_score: float = 0.0
    num_words: int = 0


class Search(Protocol):
    """A beam search on the CPU.

    nbest: hypotheses of an utterance
    part_end: label that ends each part of a long utterance; None where a part may end within a word
    """

    nbest: int
    part_end: int | None

    def search(self, log_probs: list[np.ndarray]) -> list[list[Found]]:
        """
        Args:
            log_probs: (T, V) of each utterance, in nats
        Returns:
            for each utterance up to ``nbest`` hypotheses of different words, best first
        """


def joined(parts: list[list[Found]], search: Search) -> list[Found]:
    """The n-best list of an utterance from those of its parts, which are searched one by one: of
    all that follow each other, those with the best sum of scores.

    Args:
        parts: each with a hypothesis at least
    """
    if len(parts) == 1:
        return parts[0]
    if search.part_end is not None:
        parts = [[_ended(found, search.part_end) for found in part] for part in parts]
    chains = [[found] for found in parts[0]]
    for part in parts[1:]:
        longer = [[*chain, found] for chain in chains for found in part]
        longer.sort(key=lambda chain: -sum(found.score for found in chain))
        chains = longer[: search.nbest]
    return [
        Found(
            np.concatenate([found.path for found in chain]),
            *(
                sum(getattr(found, name) for found in chain)
                for name in ("score", "acoustic_score", "lm_score", "num_words")
            ),
        )
        for chain in chains
    ]


def _ended(found: Found, label: int) -> Found:
    """The same with ``label`` in the last frame, so that its last word ends there."""
    path = found.path.copy()
    path[-1:] = label
    return replace(found, path=path)
