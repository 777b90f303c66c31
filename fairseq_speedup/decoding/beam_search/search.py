"""What every beam search takes and gives."""

from collections.abc import Callable, Hashable
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
    """A beam search on the CPU.

    nbest: hypotheses of an utterance
    blank: index of the blank
    part_end: label that ends each part of a long utterance; None where a part may end within a word
    """

    nbest: int
    blank: int
    part_end: int | None

    def search(self, log_probs: list[np.ndarray]) -> list[list[Found]]:
        """
        Args:
            log_probs: (T, V) of each utterance, in nats
        Returns:
            for each utterance one to ``nbest`` hypotheses of different words, best first;
            :func:`nothing_found` where there is none
        """


def nothing_found(num_frames: int, blank: int) -> Found:
    """The empty hypothesis of an utterance that a search finds none for, so that it counts."""
    return Found(np.full(num_frames, blank), -np.inf, -np.inf)


def joined(
    parts: list[list[Found]], search: Search, words_of: Callable[[np.ndarray], Hashable]
) -> list[Found]:
    """The n-best list of an utterance from those of its parts, which are searched one by one: of
    all that follow each other, those of different words with the best sum of scores.

    Args:
        parts: each with a hypothesis at least
        words_of: gives the words of a path (T,)
    """
    if len(parts) == 1:
        return parts[0]
    chains = parts[0]
    for part in parts[1:]:
        pairs = [(chain, found) for chain in chains for found in part]
        pairs.sort(key=lambda pair: -(pair[0].score + pair[1].score))
        longer: dict[Hashable, Found] = {}
        for pair in pairs:
            chain = _followed(*pair, search)
            longer.setdefault(words_of(chain.path) if search.nbest > 1 else None, chain)
            if len(longer) == search.nbest:
                break
        chains = list(longer.values())
    return chains


def _followed(first: Found, second: Found, search: Search) -> Found:
    """One part's hypothesis and the next one's as one, of a word's end between them where the
    search's parts end with one."""
    names = ("score", "acoustic_score", "lm_score", "num_words")
    sums = (getattr(first, name) + getattr(second, name) for name in names)
    path = np.concatenate([first.path, second.path])
    if search.part_end is not None:
        last, following = len(first.path) - 1, len(first.path)
        silent = [at for at in (last, following) if path[at] in (search.blank, search.part_end)]
        path[(silent or [last])[0]] = search.part_end
    return Found(path, *sums)
