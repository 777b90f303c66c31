"""Beam search with a language model, a lexicon or both: flashlight-text's decoders."""

from typing import Any

import numpy as np

from fairseq_speedup.decoding.beam_search.search import Found, nothing_found
from fairseq_speedup.decoding.language.language_model import load_kenlm
from fairseq_speedup.decoding.language.lexicon import Lexicon
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import DecodingOptions

try:
    from flashlight.lib.text import decoder as flashlight
except ImportError:
    flashlight = None

NO_UNKNOWN_WORDS = -np.inf


class MissingExtraError(ValueError):
    """flashlight-text is not installed."""

    def __init__(self, option: str):
        super().__init__(
            f"{option} needs flashlight-text, which is not installed: pip install flashlight-text "
            "(the extra 'beam'). --ctc-decoder beam alone, without language model and lexicon, "
            "needs nothing more"
        )


def check_installed(option: str) -> None:
    """Raises MissingExtraError, naming the option that needs it."""
    if flashlight is None:
        raise MissingExtraError(option)


class _FlashlightSearch:
    """What both decoders share. ``acoustic_score`` is of the best alignment."""

    part_end: int | None = None
    decoder: Any  # flashlight's, made by weigh

    def __init__(self, words: Words, blank: int, options: DecodingOptions, beam: int, nbest: int):
        self.words = words
        self.blank = blank
        self.options = options
        self.beam = beam
        self.nbest = nbest
        self.lm_weight = self.word_score = 0.0
        self.num_labels = len(words.symbols)
        # a label that no path has, where none stands between words
        self.silence = words.boundary_label
        if self.silence is None:
            self.silence = words.unspoken[0]

    def search(self, log_probs: list[np.ndarray]) -> list[list[Found]]:
        """See :class:`~fairseq_speedup.decoding.beam_search.search.Search`."""
        return [self._search_one(each) for each in log_probs]

    def _search_one(self, log_probs: np.ndarray) -> list[Found]:
        frames = np.ascontiguousarray(self.framed(log_probs), dtype=np.float32)
        results = self.decoder.decode(frames.ctypes.data, *frames.shape)
        found, seen = [], set()
        for result in results:
            if result.score == -np.inf:
                break
            words = self.words_of(result)
            if words in seen:
                continue
            seen.add(words)
            found.append(self._found(result, len(log_probs)))
            if len(found) == self.nbest:
                break
        return found or [nothing_found(len(log_probs), self.blank)]

    def _found(self, result: Any, num_frames: int) -> Found:
        # flashlight's begins with where it started from and ends with where it finished
        path = np.array(result.tokens[1:-1], dtype=np.int64)
        silent_frames = int((path[:num_frames] == self.silence).sum())
        num_words = self.num_words(result)
        acoustic = (
            result.score
            - self.lm_weight * result.lmScore
            - self.word_score * num_words
            - self.options.sil_score * silent_frames
        )
        path = self.cleaned(path, result)[:num_frames]
        return Found(path, result.score, acoustic, result.lmScore, num_words)

    def framed(self, log_probs: np.ndarray) -> np.ndarray:
        """What flashlight is given of an utterance (T, V)."""
        return log_probs

    def words_of(self, result: Any) -> tuple:
        """What tells hypotheses apart."""
        raise NotImplementedError

    def num_words(self, result: Any) -> int:
        """Words that word_score counts."""
        return 0

    def cleaned(self, path: np.ndarray, result: Any) -> np.ndarray:
        """Of a path (T,), what belongs to the hypothesis."""
        return path

    def _common_options(self) -> dict:
        limit = self.options.beam_size_token or self.num_labels
        return {
            "beam_size": self.beam,
            "beam_size_token": min(limit, self.num_labels),
            "beam_threshold": self.options.beam_threshold,
            "lm_weight": self.lm_weight,
            "sil_score": self.options.sil_score,
            "log_add": False,
            "criterion_type": flashlight.CriterionType.CTC,
        }


class LexiconSearch(_FlashlightSearch):
    """Words of a lexicon, scored by a language model over words or by none.

    Args:
        words: of the labels
        blank: index of the blank
        lexicon: the words that can be found
        language_model: path of an ARPA or KenLM file over words, empty for none
    """

    def __init__(
        self,
        words: Words,
        blank: int,
        options: DecodingOptions,
        beam: int,
        nbest: int,
        lm_weight: float,
        lexicon: Lexicon,
        language_model: str,
    ):
        super().__init__(words, blank, options, beam, nbest)
        self.part_end = words.boundary_label
        if not language_model:
            self.lm = flashlight.ZeroLM()
        else:
            self.lm = load_kenlm(language_model, lexicon.words)
        self.trie = self._trie(lexicon)
        self.num_lexicon_words = len(lexicon.words)
        self.weigh(lm_weight, options.word_score)

    def weigh(self, lm_weight: float, word_score: float) -> None:
        """Searches with these from now on."""
        self.lm_weight, self.word_score = lm_weight, word_score
        options = flashlight.LexiconDecoderOptions(
            word_score=word_score, unk_score=NO_UNKNOWN_WORDS, **self._common_options()
        )
        unknown = self.num_lexicon_words
        places = (self.silence, self.blank, unknown)
        no_transitions: list = []
        over_labels = False
        self.decoder = flashlight.LexiconDecoder(
            options, self.trie, self.lm, *places, no_transitions, over_labels
        )

    def _trie(self, lexicon: Lexicon) -> Any:
        """Spellings with what the language model says of each word alone, for prefixes too."""
        index = {symbol: label for label, symbol in enumerate(self.words.symbols)}
        trie = flashlight.Trie(self.num_labels, self.silence)
        start = self.lm.start(False)
        for number, word in enumerate(lexicon.words):
            _, score = self.lm.score(start, number)
            for spelling in lexicon.spellings[word]:
                trie.insert([index[symbol] for symbol in spelling], number, score)
        trie.smear(flashlight.SmearingMode.MAX)
        return trie

    def framed(self, log_probs: np.ndarray) -> np.ndarray:
        """With a frame more where labels have a boundary: the end of an utterance ends its last
        word, whether or not the model wrote a boundary."""
        if self.words.boundary_label is None:
            return log_probs
        end = np.full((1, self.num_labels), -np.inf, dtype=np.float32)
        end[0, self.blank] = 0.0
        end[0, self.silence] = -self.options.sil_score
        return np.concatenate([log_probs, end])

    def cleaned(self, path: np.ndarray, result: Any) -> np.ndarray:
        """Without silence that ends no word, and without the letters of a word that the utterance's
        end cut off, where the beam had no whole one left."""
        ends = np.flatnonzero(np.array(result.words[1:-1]) >= 0).tolist()
        kept = path.copy()
        kept[ends[-1] + 1 if ends else 0 :] = self.blank
        word_ends = set(ends)
        starts = np.flatnonzero(np.append(True, path[1:] != path[:-1])).tolist()
        for start, end in zip(starts, [*starts[1:], len(path)], strict=True):
            if path[start] == self.silence:
                kept[start:end] = self.silence if start in word_ends else self.blank
        return kept

    def words_of(self, result: Any) -> tuple[int, ...]:
        return tuple(word for word in result.words if word >= 0)

    def num_words(self, result: Any) -> int:
        return sum(word >= 0 for word in result.words)


class LexiconFreeSearch(_FlashlightSearch):
    """Any sequence of labels, scored by a language model over labels.

    Args:
        words: of the labels
        blank: index of the blank
        language_model: path of an ARPA or KenLM file over labels
    """

    def __init__(
        self,
        words: Words,
        blank: int,
        options: DecodingOptions,
        beam: int,
        nbest: int,
        lm_weight: float,
        language_model: str,
    ):
        super().__init__(words, blank, options, beam, nbest)
        self.lm = load_kenlm(language_model, words.symbols)
        self.weigh(lm_weight)

    def weigh(self, lm_weight: float, word_score: float = 0.0) -> None:
        """Searches with this from now on; words have no score of their own here."""
        self.lm_weight = lm_weight
        options = flashlight.LexiconFreeDecoderOptions(**self._common_options())
        no_transitions: list = []
        self.decoder = flashlight.LexiconFreeDecoder(
            options, self.lm, self.silence, self.blank, no_transitions
        )

    def words_of(self, result: Any) -> tuple[str, ...]:
        path = np.array(result.tokens[1:-1], dtype=np.int64)
        return self.words.of_path(path, self.blank)
