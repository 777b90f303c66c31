"""The decoder of ``--ctc-decoder beam``: emissions, a search over them, fairseq's hypotheses."""

import itertools
import os
from collections import Counter

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig

from fairseq_speedup.data.manifest import read_lines
from fairseq_speedup.decoding.beam_search import flashlight
from fairseq_speedup.decoding.beam_search.emissions import Emission, emissions_of
from fairseq_speedup.decoding.beam_search.prefix_beam import PrefixBeamSearch
from fairseq_speedup.decoding.beam_search.search import Found, Search, joined
from fairseq_speedup.decoding.beam_search.workers import Pending, Workers
from fairseq_speedup.decoding.decoder import Decoder
from fairseq_speedup.decoding.greedy import GreedyDecoder
from fairseq_speedup.decoding.hypothesis import from_path, moved
from fairseq_speedup.decoding.language.language_model import check_vocabulary
from fairseq_speedup.decoding.language.lexicon import Lexicon, read_lexicon
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import DecodingOptions
from fairseq_speedup.decoding.windows import parts_of
from fairseq_speedup.profiling.compute_file import searched_share


class BeamDecoder:
    """
    Args:
        search: finds the hypotheses of emissions
        words: of the labels
        blank: index of the blank
        blank_skip_threshold: see :func:`.emissions.skip_blanks`
        num_workers: processes that search; 0 for this one
        longest: frames that are searched at once, 0 for any number: longer utterances are cut (see
            :func:`~fairseq_speedup.decoding.windows.parts_of`)
    """

    def __init__(
        self,
        search: Search,
        words: Words,
        blank: int,
        blank_skip_threshold: float = 1.0,
        num_workers: int = 0,
        longest: int = 0,
    ):
        self.search = search
        self.longest = longest
        self.workers = Workers(search, num_workers) if num_workers > 0 else None
        self.blank = blank
        self.words = words
        self.blank_skip_threshold = blank_skip_threshold
        self.num_frames = 0
        self.num_searched_frames = 0

    @property
    def overlaps(self) -> bool:
        """Whether the encoder can go on while a batch is searched."""
        return self.workers is not None

    def start(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> "DecodingBatch":
        """
        Args:
            log_probs: (T, B, V)
            lengths: (B,), valid frames
        """
        emissions = emissions_of(
            log_probs, lengths, self.blank, self.words.unspoken, self.blank_skip_threshold
        )
        self.num_frames += sum(emission.num_frames for emission in emissions)
        self.num_searched_frames += sum(len(emission.frames) for emission in emissions)
        return DecodingBatch(emissions, self)

    def decode(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[dict]]:
        """The same, and for each utterance its n-best list (see
        :func:`~fairseq_speedup.decoding.hypothesis.from_path`)."""
        return self.start(log_probs, lengths).hypotheses()

    def close(self) -> None:
        """Once everything is decoded."""
        if self.workers is not None:
            self.workers.close()

    def report(self) -> dict:
        """How many frames there were and how many were searched, for compute.json."""
        return searched_share(self.num_frames, self.num_searched_frames)


class DecodingBatch:
    """A :class:`~fairseq_speedup.decoding.decoder.Batch` on its way."""

    def __init__(self, emissions: list[Emission], decoder: BeamDecoder):
        self.emissions = emissions
        self.blank = decoder.blank
        self.words = decoder.words
        self.seconds_elsewhere = 0.0
        self.search = decoder.search
        self.parts = [_parts(each, decoder) for each in emissions]
        log_probs = list(itertools.chain.from_iterable(self.parts))
        self.pending: Pending | None = None
        self.found: list[list[Found]] = []
        if decoder.workers is None:
            self.found = self._of_utterances(decoder.search.search(log_probs))
        else:
            self.pending = decoder.workers.submit(log_probs)

    def wait(self) -> None:
        if self.pending is not None:
            found, self.seconds_elsewhere = self.pending.result()
            self.found, self.pending = self._of_utterances(found), None

    def _of_utterances(self, found: list[list[Found]]) -> list[list[Found]]:
        in_order = iter(found)
        return [
            joined([next(in_order) for _ in parts], self.search, self._words_of)
            for parts in self.parts
        ]

    def _words_of(self, path: np.ndarray) -> tuple[str, ...]:
        return self.words.of_path(path, self.blank)

    def hypotheses(self) -> list[list[dict]]:
        self.wait()
        return [
            [self._hypothesis(each, emission) for each in found]
            for found, emission in zip(self.found, self.emissions, strict=True)
        ]

    def _hypothesis(self, found: Found, emission: Emission) -> dict:
        scores = emission.log_probs[np.arange(len(found.path)), found.path]
        hypothesis = from_path(
            torch.from_numpy(found.path), torch.from_numpy(scores).float(), self.blank
        )
        return moved(hypothesis, emission.frames) | {
            "score": found.score + emission.skipped_score,
            "acoustic_score": found.acoustic_score + emission.skipped_score,
            "lm_score": found.lm_score,
            "num_words": found.num_words,
        }


def _parts(emission: Emission, decoder: BeamDecoder) -> list[np.ndarray]:
    log_probs, blank = emission.log_probs, decoder.blank
    if not 0 < decoder.longest < len(log_probs):
        return [log_probs]
    whole = decoder.words.whole_before(log_probs.argmax(axis=1), blank)
    spans = parts_of(log_probs[:, blank], decoder.longest, whole)
    return [log_probs[start:end] for start, end in spans]


def build_decoder(
    options: DecodingOptions,
    generation: GenerationConfig,
    dictionary: Dictionary,
    blank: int,
    labels_path: str,
    longest: int = 0,
) -> Decoder:
    """The decoder that the options ask for, which are checked.

    Args:
        generation: fairseq's GenerationConfig
        dictionary: the labels
        blank: index of the blank
        labels_path: the training split's labels, which a language model is checked against where
            they are there
        longest: frames that a beam search takes at once, 0 for any number
    """
    if options.ctc_decoder == "greedy":
        return GreedyDecoder(blank)
    words = Words.of_dictionary(dictionary)
    search = build_search(
        options, words, blank, generation.beam, generation.nbest, generation.lm_weight, labels_path
    )
    return BeamDecoder(
        search, words, blank, options.blank_skip_threshold, options.decoder_workers, longest
    )


def build_search(
    options: DecodingOptions,
    words: Words,
    blank: int,
    beam: int,
    nbest: int,
    lm_weight: float,
    labels_path: str,
) -> Search:
    """
    Raises:
        ValueError, OSError: a file that cannot be used, or flashlight-text is needed and missing
    """
    if not options.lexicon and not options.kenlm_model:
        return PrefixBeamSearch(
            words, blank, beam, nbest, options.beam_threshold, options.beam_size_token
        )
    flashlight.check_installed("--kenlm-model" if options.kenlm_model else "--lexicon")
    lexicon = read_lexicon(options.lexicon, words) if options.lexicon else None
    if options.kenlm_model:
        tokens, source = _running_tokens(words, lexicon, labels_path)
        check_vocabulary(options.kenlm_model, tokens, source, options.lexicon_free)
    common = (words, blank, options, beam, nbest, lm_weight)
    if lexicon is None:
        return flashlight.LexiconFreeSearch(*common, options.kenlm_model)
    return flashlight.LexiconSearch(*common, lexicon, options.kenlm_model)


def _running_tokens(
    words: Words, lexicon: Lexicon | None, labels_path: str
) -> tuple[Counter[str], str]:
    """What a language model will score, counted, and where that is from: words, or labels where
    there is no lexicon."""
    if os.path.isfile(labels_path):
        lines = [line.split() for line in read_lines(labels_path)]
        tokens = lines if lexicon is None else [words.of(line) for line in lines]
        return Counter(token for line in tokens for token in line), labels_path
    if lexicon is None:
        return Counter(words.spoken), "the dictionary"
    return Counter(lexicon.words), "the lexicon"
