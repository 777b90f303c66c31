"""CTC prefix beam search without a language model, for a batch of utterances at once."""

import numpy as np

from fairseq_speedup.decoding.forced_alignment import best_paths
from fairseq_speedup.decoding.search import Found
from fairseq_speedup.decoding.words import Words

HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
NO_LABEL = -1


class PrefixBeamSearch:
    """Finds the label sequences with the largest probability summed over alignments (Hannun et al.,
    arXiv 1408.2873, without a language model).

    The utterances' beams are arrays; a prefix is known by a 64-bit hash of its labels.

    Args:
        words: sequences that make the same words are one hypothesis, with the better one's score
        blank: index of the blank
        beam: prefixes kept after each frame
        nbest: hypotheses given
        beam_threshold: prefixes this much below the best one, in nats, are dropped
        beam_size_token: labels that prefixes are extended by in a frame, the likeliest; 0 for all
    """

    def __init__(
        self,
        words: Words,
        blank: int,
        beam: int,
        nbest: int = 1,
        beam_threshold: float = 25.0,
        beam_size_token: int = 0,
    ):
        self.words = words
        self.blank = blank
        self.beam = beam
        self.nbest = nbest
        self.beam_threshold = beam_threshold
        self.beam_size_token = beam_size_token

    def search(self, log_probs: list[np.ndarray]) -> list[list[Found]]:
        """See :class:`~fairseq_speedup.decoding.search.Search`; ``acoustic_score`` sums over
        alignments."""
        order = sorted(range(len(log_probs)), key=lambda i: -len(log_probs[i]))
        found = self._search([log_probs[i] for i in order])
        return [found[order.index(i)] for i in range(len(order))]

    def _search(self, log_probs: list[np.ndarray]) -> list[list[Found]]:
        """Of utterances from the longest to the shortest."""
        lengths = np.array([len(each) for each in log_probs])
        beams = _Beams(len(log_probs), self.beam)
        for frame in range(lengths[0] if len(lengths) else 0):
            active = int((lengths > frame).sum())
            self._step(beams, np.stack([each[frame] for each in log_probs[:active]]))
        chosen = [
            self._different_words(beams.ranked(utterance, int(length)))
            for utterance, length in enumerate(lengths)
        ]
        return [
            [
                Found(path, float(score), float(score))
                for path, (_, score) in zip(
                    best_paths(emission, [labels for labels, _ in hypotheses], self.blank),
                    hypotheses,
                    strict=True,
                )
            ]
            for emission, hypotheses in zip(log_probs, chosen, strict=True)
        ]

    def _step(self, beams: "_Beams", log_probs: np.ndarray) -> None:
        """
        Args:
            log_probs: (A, V), one frame of the first A utterances
        """
        active = len(log_probs)
        rows = np.arange(active)[:, None]
        log_probs = log_probs.astype(np.float64)
        labels = self._likeliest(log_probs)  # (A, K)
        blanks, spoken, last = beams.blanks[:active], beams.spoken[:active], beams.last[:active]
        total = np.logaddexp(blanks, spoken)  # (A, B)

        stay_blank = total + log_probs[:, self.blank, None]
        last_log_prob = log_probs[rows, last]  # of the empty prefix's: its spoken is -inf
        stay_spoken = spoken + last_log_prob

        # a repeated label is a new one only after a blank
        repeats = labels[:, None, :] == last[:, :, None]  # (A, B, K)
        extended = np.where(repeats, blanks[:, :, None], total[:, :, None])
        extended = extended + np.take_along_axis(log_probs, labels, axis=1)[:, None, :]

        # a prefix whose parent is in the beam too is reached by extending that: added, not doubled
        child, parent = beams.parents_in_beam(active)  # each (pairs, 2): utterance, place
        if len(child):
            utterance, place = child.T
            label = last[utterance, place]
            of_parent = np.where(
                last[utterance, parent] == label,
                blanks[utterance, parent],
                total[utterance, parent],
            )
            stay_spoken[utterance, place] = np.logaddexp(
                stay_spoken[utterance, place], of_parent + last_log_prob[utterance, place]
            )
            doubled, position = np.nonzero(labels[utterance] == label[:, None])
            extended[utterance[doubled], parent[doubled], position] = -np.inf
        beams.advance(stay_blank, stay_spoken, extended, labels, self.beam_threshold)

    def _likeliest(self, log_probs: np.ndarray) -> np.ndarray:
        """Labels (A, K) to extend by, never the blank."""
        num_labels = log_probs.shape[1]
        if not 0 < self.beam_size_token < num_labels - 1:
            labels = np.delete(np.arange(num_labels), self.blank)
            return np.broadcast_to(labels, (len(log_probs), num_labels - 1))
        without_blank = log_probs.copy()
        without_blank[:, self.blank] = -np.inf
        return np.argpartition(-without_blank, self.beam_size_token, axis=1)[
            :, : self.beam_size_token
        ]

    def _different_words(self, ranked) -> list[tuple[list[int], float]]:
        chosen, seen = [], set()
        for labels, score in ranked:
            words = tuple(self.words.of([self.words.symbols[label] for label in labels]))
            if words not in seen:
                seen.add(words)
                chosen.append((labels, score))
            if len(chosen) == self.nbest:
                break
        return chosen


class _Beams:
    """The prefixes of U utterances, B each, and how each frame's came from those before.

    blanks, spoken: (U, B), log-probability of alignments that end in blank or in the last label
    last: (U, B), last label, NO_LABEL of the empty prefix
    prefix, parent: (U, B), hash of the prefix and of it without its last label
    """

    def __init__(self, num_utterances: int, beam: int):
        shape = (num_utterances, beam)
        self.blanks = np.full(shape, -np.inf)
        self.spoken = np.full(shape, -np.inf)
        self.last = np.full(shape, NO_LABEL)
        self.prefix = np.zeros(shape, dtype=np.uint64)
        self.parent = np.zeros(shape, dtype=np.uint64)
        self.blanks[:, 0] = 0.0
        self.prefix[:, 0] = 1
        self.steps: list[tuple[np.ndarray, np.ndarray]] = []

    def parents_in_beam(self, active: int):
        """(pairs, 2) utterance and place of prefixes whose parent is in the beam, and (pairs,) the
        parent's place."""
        alive = np.isfinite(np.maximum(self.blanks[:active], self.spoken[:active]))
        same = self.parent[:active, :, None] == self.prefix[:active, None, :]
        same &= alive[:, :, None] & alive[:, None, :]
        utterance, place, parent = np.nonzero(same)
        return np.stack([utterance, place], axis=1), parent

    def advance(self, stay_blank, stay_spoken, extended, labels, threshold) -> None:
        """Keeps the best of staying and extending.

        Args:
            stay_blank, stay_spoken: (A, B)
            extended: (A, B, K)
            labels: (A, K)
        """
        active, beam, num_labels = extended.shape
        scores = np.concatenate(
            [np.logaddexp(stay_blank, stay_spoken), extended.reshape(active, -1)], axis=1
        )
        if scores.shape[1] > beam:
            kept = np.argpartition(-scores, beam - 1, axis=1)[:, :beam]
        else:
            kept = np.broadcast_to(np.arange(beam), (active, beam))
        score = np.take_along_axis(scores, kept, axis=1)
        alive = score >= score.max(axis=1, keepdims=True) - threshold
        stays = kept < beam
        place = np.where(stays, kept, (kept - beam) // num_labels)
        label = np.take_along_axis(labels, np.where(stays, 0, (kept - beam) % num_labels), axis=1)

        def of_source(values):
            return np.take_along_axis(values, place, axis=1)

        prefix = of_source(self.prefix[:active])
        longer = _hash(prefix, label)
        parent = np.where(stays, of_source(self.parent[:active]), prefix)
        self.prefix[:active] = np.where(stays, prefix, longer)
        self.parent[:active] = parent
        self.last[:active] = np.where(stays, of_source(self.last[:active]), label)
        self.blanks[:active] = np.where(stays & alive, of_source(stay_blank), -np.inf)
        spoken = np.where(stays, of_source(stay_spoken), score)
        self.spoken[:active] = np.where(alive, spoken, -np.inf)
        self.steps.append((place.astype(np.int32), np.where(stays, NO_LABEL, label)))

    def ranked(self, utterance: int, num_frames: int):
        """(labels, score) of an utterance's prefixes, best first."""
        scores = np.logaddexp(self.blanks[utterance], self.spoken[utterance])
        for place in np.argsort(-scores, kind="stable"):
            if np.isfinite(scores[place]):
                yield self._labels(utterance, place, num_frames), scores[place]

    def _labels(self, utterance: int, place: int, num_frames: int) -> list[int]:
        labels = []
        for places, appended in reversed(self.steps[:num_frames]):
            label = appended[utterance, place]
            if label != NO_LABEL:
                labels.append(int(label))
            place = places[utterance, place]
        return labels[::-1]


def _hash(prefix: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Of prefixes (uint64) with a label more."""
    mixed = (prefix ^ (label.astype(np.uint64) + np.uint64(1))) * HASH_FACTOR
    return mixed ^ (mixed >> np.uint64(29))
