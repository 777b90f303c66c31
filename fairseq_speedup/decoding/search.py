"""What every beam search takes and gives."""

from dataclasses import dataclass
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
    """A beam search on the CPU."""

    def search(self, log_probs: list[np.ndarray]) -> list[list[Found]]:
        """
        Args:
            log_probs: (T, V) of each utterance, in nats
        Returns:
            for each utterance up to ``nbest`` hypotheses of different words, best first
        """
