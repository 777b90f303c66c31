"""CTC prefix beam search without a language model, for a batch of utterances at once."""

from dataclasses import dataclass

import numpy as np

from fairseq_speedup.decoding.beam_search.search import Found, nothing_found
from fairseq_speedup.decoding.language.words import Words

HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
HASH_SHIFT = np.uint64(29)
NO_LABEL = -1


class PrefixBeamSearch:
    """Finds the label sequences with the largest probability summed over alignments (Hannun et al.,
    arXiv 1408.2873, without a language model), and the best alignment of each.

    Args:
        words: sequences that make the same words are one hypothesis, with the better one's score
        blank: index of the blank
        beam: prefixes kept after each frame
        nbest: hypotheses given
        beam_threshold: prefixes this much below the best one, in nats, are dropped
        beam_size_token: labels that prefixes are extended by in a frame, the likeliest; 0 for all
    """

    part_end: int | None = None

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
        """See :class:`.search.Search`; ``acoustic_score`` sums over alignments."""
        longest_first = sorted(range(len(log_probs)), key=lambda i: -len(log_probs[i]))
        lengths = [len(log_probs[i]) for i in longest_first]
        beams = Beams(len(log_probs), self.beam)
        history = []
        for frame in range(max(lengths, default=0)):
            active = sum(length > frame for length in lengths)
            rows = np.stack([log_probs[i][frame] for i in longest_first[:active]])
            history.append(self._step(beams, rows.astype(np.float64)))
        found = {
            i: self._found(beams, history[: lengths[place]], place)
            for place, i in enumerate(longest_first)
        }
        return [found[i] for i in range(len(log_probs))]

    def _step(self, beams: "Beams", log_probs: np.ndarray) -> "Step":
        """
        Args:
            log_probs: (A, V), one frame of the first A utterances
        """
        now = beams.first(len(log_probs))
        labels = self._likeliest(log_probs)  # (A, K)
        stay_blank = now.total + log_probs[:, self.blank, None]
        last_log_prob = np.take_along_axis(log_probs, now.last, axis=1)  # any, of the empty prefix
        stay_spoken = now.spoken + last_log_prob
        best_spoken = now.best_spoken + last_log_prob
        source, source_in_blank = now.places(), np.zeros(now.last.shape, dtype=bool)

        # a label equal to the last one is another one only after a blank
        repeats = labels[:, None, :] == now.last[:, :, None]  # (A, B, K)
        extended = np.where(repeats, now.blanks[:, :, None], now.total[:, :, None])
        extended += np.take_along_axis(log_probs, labels, axis=1)[:, None, :]

        # a prefix in the beam is also reached by extending its parent, if that is in the beam too
        utterance, child, parent = now.families()
        label = now.last[utterance, child]
        pairs = (utterance, child)
        reached, best, in_blank = now.before((utterance, parent), label)
        stay_spoken[pairs] = np.logaddexp(stay_spoken[pairs], reached + last_log_prob[pairs])
        best = best + last_log_prob[pairs]
        better = best > best_spoken[pairs]
        best_spoken[pairs] = np.where(better, best, best_spoken[pairs])
        source[pairs] = np.where(better, parent, child)
        source_in_blank[pairs] = better & in_blank
        counted, column = np.nonzero(labels[utterance] == label[:, None])
        extended[utterance[counted], parent[counted], column] = -np.inf

        scores = np.concatenate(
            [np.logaddexp(stay_blank, stay_spoken), extended.reshape(len(labels), -1)], axis=1
        )
        kept = _largest(scores, self.beam)  # (A, B): staying, or extending by a label
        score = np.take_along_axis(scores, kept, axis=1)
        alive = score >= score.max(axis=1, keepdims=True) - self.beam_threshold
        stays = kept < self.beam
        extension = np.maximum(kept - self.beam, 0)
        place = np.where(stays, kept, extension // labels.shape[1])
        label = np.take_along_axis(labels, extension % labels.shape[1], axis=1)

        def of(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values, place, axis=1)

        _, best, in_blank = now.before((now.rows(), place), label)
        best = best + np.take_along_axis(log_probs, label, axis=1)
        prefix = of(now.prefix)
        step = Step(
            last=np.where(stays, of(now.last), label),
            place=place,
            blank_in_blank=of(now.best_blanks >= now.best_spoken),
            source=np.where(stays, of(source), place),
            source_in_blank=np.where(stays, of(source_in_blank), in_blank),
        )
        best_stay_blank = np.maximum(now.best_blanks, now.best_spoken)
        best_stay_blank = best_stay_blank + log_probs[:, self.blank, None]
        now.set(
            blanks=np.where(stays & alive, of(stay_blank), -np.inf),
            spoken=np.where(alive, np.where(stays, of(stay_spoken), score), -np.inf),
            best_blanks=np.where(stays, of(best_stay_blank), -np.inf),
            best_spoken=np.where(stays, of(best_spoken), best),
            last=step.last,
            parent=np.where(stays, of(now.parent), prefix),
            prefix=np.where(stays, prefix, _hash(prefix, label)),
        )
        return step

    def _likeliest(self, log_probs: np.ndarray) -> np.ndarray:
        """Labels (A, K) to extend by, never the blank."""
        num_labels = log_probs.shape[1]
        if not 0 < self.beam_size_token < num_labels - 1:
            labels = np.delete(np.arange(num_labels), self.blank)
            return np.broadcast_to(labels, (len(log_probs), num_labels - 1))
        without_blank = log_probs.copy()
        without_blank[:, self.blank] = -np.inf
        return _largest(without_blank, self.beam_size_token)

    def _found(self, beams: "Beams", history: list["Step"], utterance: int) -> list[Found]:
        """The n-best list of one utterance."""
        scores = np.logaddexp(beams.blanks[utterance], beams.spoken[utterance])
        found: list[Found] = []
        seen = set()
        for place in np.argsort(-scores, kind="stable"):
            if len(found) == self.nbest or scores[place] == -np.inf:
                break
            in_blank = beams.best_blanks[utterance, place] >= beams.best_spoken[utterance, place]
            path = self._path(history, utterance, place, in_blank)
            words = self.words.of_path(path, self.blank)
            if words not in seen:
                seen.add(words)
                found.append(Found(path, float(scores[place]), float(scores[place])))
        return found or [nothing_found(len(history), self.blank)]

    def _path(
        self, history: list["Step"], utterance: int, place: int, in_blank: bool
    ) -> np.ndarray:
        """The best alignment (T,) of a prefix at the end of ``history``."""
        path = np.full(len(history), self.blank)
        for frame in range(len(history) - 1, -1, -1):
            step = history[frame]
            if in_blank:
                in_blank = step.blank_in_blank[utterance, place]
                place = step.place[utterance, place]
            else:
                path[frame] = step.last[utterance, place]
                in_blank = step.source_in_blank[utterance, place]
                place = step.source[utterance, place]
        return path


@dataclass
class Step:
    """Where each prefix (A, B) after a frame came from.

    last: its last label
    place: of the same prefix or its parent, before the frame
    blank_in_blank: whether its best alignment that ends in blank was in blank before
    source, source_in_blank: the same for its best alignment that ends in the last label
    """

    last: np.ndarray
    place: np.ndarray
    blank_in_blank: np.ndarray
    source: np.ndarray
    source_in_blank: np.ndarray


class Beams:
    """The prefixes of U utterances, B each; those without a probability are empty places.

    blanks, spoken: (U, B), log-probability of all alignments that end in blank, in the last label
    best_blanks, best_spoken: (U, B), of the best such alignment
    last: (U, B), last label, NO_LABEL of the empty prefix
    prefix, parent: (U, B), 64-bit hash of the prefix and of it without its last label, which
        differ from utterance to utterance
    """

    total: np.ndarray  # of views alone: (U, B), blanks and spoken together

    FIELDS = ("blanks", "spoken", "best_blanks", "best_spoken", "last", "prefix", "parent")

    def __init__(self, num_utterances: int, beam: int):
        shape = (num_utterances, beam)
        self.blanks = np.full(shape, -np.inf)
        self.spoken = np.full(shape, -np.inf)
        self.best_blanks = np.full(shape, -np.inf)
        self.best_spoken = np.full(shape, -np.inf)
        self.last = np.full(shape, NO_LABEL)
        self.prefix = np.zeros(shape, dtype=np.uint64)
        self.parent = np.zeros(shape, dtype=np.uint64)
        self.blanks[:, 0] = self.best_blanks[:, 0] = 0.0
        self.prefix[:, 0] = np.arange(1, num_utterances + 1, dtype=np.uint64) * HASH_FACTOR

    def first(self, count: int) -> "Beams":
        """Views of the first utterances."""
        beams = Beams.__new__(Beams)
        for name in self.FIELDS:
            setattr(beams, name, getattr(self, name)[:count])
        beams.total = np.logaddexp(beams.blanks, beams.spoken)
        return beams

    def set(self, **values: np.ndarray) -> None:
        for name, value in values.items():
            getattr(self, name)[...] = value

    def rows(self) -> np.ndarray:
        return np.arange(len(self.last))[:, None]

    def places(self) -> np.ndarray:
        return np.tile(np.arange(self.last.shape[1]), (len(self.last), 1))

    def families(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(utterance, place of a prefix, place of its parent) of pairs both in the beam."""
        alive = (self.total > -np.inf).ravel()
        prefix, parent = np.where(alive, self.prefix.ravel(), 0), self.parent.ravel()
        in_order = np.argsort(prefix)
        position = np.searchsorted(prefix, parent, sorter=in_order)
        found = in_order[np.minimum(position, len(in_order) - 1)]
        (child,) = np.nonzero((prefix[found] == parent) & alive & alive[found])
        utterance, place = np.divmod(child, self.last.shape[1])
        return utterance, place, found[child] % self.last.shape[1]

    def before(
        self, where: tuple[np.ndarray, np.ndarray], label: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the prefixes at ``where``, which are extended by ``label``: the log-probability of all
        alignments that can be, of the best, and whether that ends in blank."""
        repeat = self.last[where] == label
        best_blank, best_spoken = self.best_blanks[where], self.best_spoken[where]
        in_blank = repeat | (best_blank >= best_spoken)
        return (
            np.where(repeat, self.blanks[where], self.total[where]),
            np.where(in_blank, best_blank, best_spoken),
            in_blank,
        )


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Columns (A, count) of the largest ``values`` (A, N), in any order."""
    return np.argpartition(-values, count - 1, axis=1)[:, :count]


def _hash(prefix: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Of prefixes with a label more."""
    mixed = (prefix ^ (label.astype(np.uint64) + np.uint64(1))) * HASH_FACTOR
    return mixed ^ (mixed >> HASH_SHIFT)
