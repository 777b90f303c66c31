"""Choosing --lm-weight and --word-score by WER: the model is run over a development set once."""

import itertools
import json
import math
import multiprocessing
import os
import shlex
from argparse import Namespace
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import editdistance
import numpy as np
import torch

import fairseq_speedup
from fairseq_speedup.console.earlier_run import first_difference
from fairseq_speedup.console.refusals import reason
from fairseq_speedup.decoding.beam_search.decoder import build_search
from fairseq_speedup.decoding.beam_search.emissions import Emission, emissions_of, skip_blanks
from fairseq_speedup.decoding.generator import check_numbers, log_posteriors
from fairseq_speedup.decoding.language.boundaries import BOUNDARIES, NoWordsError
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.offline import Offline
from fairseq_speedup.decoding.options import (
    DEFAULTS,
    OF_SEARCH,
    option,
    options_of_search,
    read_overrides,
)
from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.files import version, written_whole

LM_WEIGHTS = [0.5, 1.0, 2.0, 3.0, 4.0]
WORD_SCORES = [-2.0, -1.0, 0.0, 1.0, 2.0]
FIRST_STEP = 0.5  # halved from round to round
DIGITS = 4


def run(args: Namespace) -> None:
    options = options_of_search(args)
    split = observed(args)
    if split.post_process == "none":
        _check_lexicon(args, split)
    words = Words(split.symbols, split.unspoken)
    search = build_search(
        options, words, split.blank, args.beam, 1, LM_WEIGHTS[0], split.training_labels
    )
    scoring = split.scoring
    print(
        f"{len(split.references)} utterances of {args.gen_subset}, {split.num_words} {scoring.unit}"
    )
    print(f"{'lm weight':>12}{'word score':>12}{f'{scoring.measure} %':>9}")
    print(f"{'greedy':>12}{'':>12}{split.wer_percent(split.greedy):>9.2f}", flush=True)
    tuning = Tuning(search, split, options.blank_skip_threshold, args.workers)
    try:
        best = tuning.best_of(LM_WEIGHTS, [0.0] if args.lexicon_free else WORD_SCORES, args.rounds)
    finally:
        tuning.pool.shutdown(cancel_futures=True)
    print(
        f"best of {len(tuning.wers)} settings on the split they were chosen on: {scoring.measure} "
        f"{tuning.wers[best]:.2f} %. Another split is decoded at it with\n"
        f"{_command(args, split, best)}"
    )


def _check_lexicon(args: Namespace, split: "ObservedSplit") -> None:
    if args.lexicon and Words(split.symbols, split.unspoken).boundary is not None:
        raise NoWordsError(
            f"--lexicon {args.lexicon} finds words, and no label line of {args.gen_subset} has the "
            "boundary between them that the dictionary has: use --lexicon-free and a language "
            "model over labels"
        )


@dataclass
class ObservedSplit:
    """What a model gave for a split.

    log_probs: (T, V) of each utterance, in nats
    references, greedy: its words, and those of the best path, as post_process makes them
    post_process: fairseq's, that fits the labels
    symbols, unspoken, blank: of the dictionary
    labels: their name, as in task.labels
    training_labels: the training split's, which may not be there
    origin: see :func:`origin_of`
    """

    log_probs: list[np.ndarray]
    references: list[list[str]]
    greedy: list[list[str]]
    symbols: list[str]
    unspoken: Sequence[int]
    blank: int
    labels: str
    post_process: str
    training_labels: str
    origin: dict

    @property
    def scoring(self) -> Scoring:
        return Scoring(post_process=self.post_process)

    @property
    def words(self) -> Words:
        """How labels make what is counted."""
        words = Words(self.symbols, self.unspoken)
        return words.told_apart_by(BOUNDARIES.get(self.post_process))

    @property
    def num_words(self) -> int:
        return sum(len(each) for each in self.references)

    def wer_percent(self, hypotheses: list[list[str]]) -> float:
        pairs = zip(hypotheses, self.references, strict=True)
        return 100 * sum(editdistance.eval(*pair) for pair in pairs) / max(1, self.num_words)

    def save(self, path: str) -> None:
        fields = {name: value for name, value in asdict(self).items() if name != "log_probs"}
        with written_whole(path) as part, open(part, "wb") as file:
            np.savez(
                file,
                fields=json.dumps(fields),
                lengths=[len(each) for each in self.log_probs],
                log_probs=np.concatenate(self.log_probs),
            )

    @classmethod
    def load(cls, path: str) -> "ObservedSplit":
        try:
            with np.load(path) as saved:
                ends = saved["lengths"].cumsum()[:-1]
                log_probs = np.split(saved["log_probs"], ends)
                found = json.loads(str(saved["fields"]))
                if "post_process" not in found:
                    raise ValueError("an earlier version wrote it; remove it")
                return cls(log_probs=log_probs, **found)
        except Exception as error:  # zipfile's are of any kind
            raise ValueError(f"--emissions {path} cannot be read: {reason(error)}") from None


def observed(args: Namespace) -> ObservedSplit:
    """From the file of --emissions where that exists, else from the model."""
    if args.emissions and os.path.exists(args.emissions):
        split = ObservedSplit.load(args.emissions)
        difference = first_difference(split.origin, origin_of(args, split.labels))
        if difference is not None:
            raise ValueError(
                f"--emissions {args.emissions} is of another run: {difference}; remove it or name "
                "another"
            )
        return split
    split = observe(args)
    if args.emissions:
        split.save(args.emissions)
        print(f"wrote {args.emissions}")
    return split


def origin_of(args: Namespace, labels: str) -> dict:
    """What decides the log-probabilities and references, as JSON gives it back.

    Args:
        labels: their name, as in task.labels
    """
    files = {
        "manifest": f"{args.gen_subset}.tsv",
        "labels": f"{args.gen_subset}.{labels}",
        "dictionary": f"dict.{labels}.txt",
    }
    origin = {
        "path": version(args.path),
        "model_overrides": read_overrides(args.model_overrides),
        **{name: version(os.path.join(args.data, file)) for name, file in files.items()},
    }
    return json.loads(json.dumps(origin, default=str))


@torch.no_grad()
def observe(args: Namespace) -> ObservedSplit:
    """Runs the model over the split.

    Raises:
        NoNumbersError: it gives NaN
    """
    offline = Offline(
        args.path,
        args.data,
        args.gen_subset,
        read_overrides(args.model_overrides),
        args.batch_size,
        args.cpu,
    )
    words = Words.of_dictionary(offline.dictionary)
    labels = offline.label_words()
    labels.tell()
    post_process = labels.post_process
    words = words.told_apart_by(BOUNDARIES.get(post_process))
    log_probs, references, greedy = [], [], []
    for sample in offline.batches():
        batch, lengths, _ = log_posteriors([offline.model], sample["net_input"])
        check_numbers(batch, lengths, sample)
        emissions = emissions_of(batch, lengths, offline.blank, words.unspoken)
        log_probs += [each.log_probs for each in emissions]
        greedy += [
            words.of_path(each.log_probs.argmax(axis=1), offline.blank) for each in emissions
        ]
        for labels in offline.references(sample):
            references.append(words.of([words.symbols[label] for label in labels.tolist()]))
    name = offline.task.cfg.labels
    return ObservedSplit(
        log_probs,
        references,
        [list(each) for each in greedy],
        words.symbols,
        list(words.unspoken),
        offline.blank,
        name,
        post_process,
        os.path.join(args.data, f"train.{name}"),
        origin_of(args, name),
    )


@dataclass(frozen=True)
class Setting:
    lm_weight: float
    word_score: float


class Tuning:
    """Decodes a split at settings, each once.

    Args:
        search: has ``weigh``
        split: what is decoded
        blank_skip_threshold: as for decoding
        num_workers: processes; each decodes the whole split at a setting
    """

    def __init__(
        self, search: Any, split: ObservedSplit, blank_skip_threshold: float, num_workers: int
    ):
        log_probs = [_searched(each, split.blank, blank_skip_threshold) for each in split.log_probs]
        self.wers: dict[Setting, float] = {}
        # forked: they share the split and the language model
        self.pool = ProcessPoolExecutor(
            num_workers,
            multiprocessing.get_context("fork"),
            _start,
            (search, split, log_probs),
        )

    def best_of(
        self, lm_weights: Sequence[float], word_scores: Sequence[float], rounds: int
    ) -> Setting:
        """The best setting of a grid, and of steps around it that are halved ``rounds`` times."""
        self.decode(Setting(*pair) for pair in itertools.product(lm_weights, word_scores))
        step = FIRST_STEP
        for _ in range(rounds):
            lowest = None
            while lowest != min(self.wers.values()):
                lowest = min(self.wers.values())
                self.decode(_around(self.best, step, fixed_score=len(word_scores) == 1))
            step /= 2
        return self.best

    def decode(self, settings: Iterable[Setting]) -> None:
        """Prints and keeps the WER of settings that are not decoded yet."""
        new = [setting for setting in settings if setting not in self.wers]
        for setting, wer in zip(new, self.pool.map(_wer_percent, new), strict=True):
            self.wers[setting] = wer
            print(f"{setting.lm_weight:>12g}{setting.word_score:>12g}{wer:>9.2f}", flush=True)

    @property
    def best(self) -> Setting:
        """With the lowest WER; of several, the one in their middle."""
        lowest = min(self.wers.values())
        ties = [setting for setting, wer in self.wers.items() if wer == lowest]
        lm_weight = sum(each.lm_weight for each in ties) / len(ties)
        word_score = sum(each.word_score for each in ties) / len(ties)
        return min(
            ties,
            key=lambda each: math.hypot(each.lm_weight - lm_weight, each.word_score - word_score),
        )


def _around(setting: Setting, step: float, fixed_score: bool) -> list[Setting]:
    """Up to eight neighbours, weights above 0."""
    scores = [0.0] if fixed_score else [-step, 0.0, step]
    steps = itertools.product([-step, 0.0, step], scores)
    around = [Setting(setting.lm_weight + x, setting.word_score + y) for x, y in steps]
    return [each for each in around if each.lm_weight > 0]


_work: tuple = ()  # of a worker: search, split, log_probs


def _start(*work: Any) -> None:
    global _work
    _work = work


def _wer_percent(setting: Setting) -> float:
    search, split, log_probs = _work
    search.weigh(setting.lm_weight, setting.word_score)
    found = search.search(log_probs)
    return split.wer_percent([split.words.of_path(best.path, split.blank) for best, *_ in found])


def _searched(log_probs: np.ndarray, blank: int, threshold: float) -> np.ndarray:
    if threshold == 1:
        return log_probs
    emission = Emission(log_probs, np.arange(len(log_probs)), len(log_probs))
    return skip_blanks(emission, blank, threshold).log_probs


def _command(args: Namespace, split: ObservedSplit, best: Setting) -> str:
    user_dir = args.user_dir or str(Path(fairseq_speedup.__file__).parent)
    command = [
        *("fairseq-generate", args.data, "--user-dir", user_dir),
        *("--task", "speedup_finetuning", "--path", args.path, "--gen-subset", "test"),
        *("--labels", split.labels, "--batch-size", str(args.batch_size), "--scoring", "wer"),
        *("--post-process", split.post_process, "--results-path", "results"),
        *("--ctc-decoder", "beam", "--beam", str(args.beam)),
    ]
    if read_overrides(args.model_overrides):
        command += ["--model-overrides", args.model_overrides]
    for name in OF_SEARCH:
        value = getattr(args, name)
        if value is True:
            command.append(option(name))
        elif value != DEFAULTS[name]:
            command += [option(name), str(value)]
    command += ["--lm-weight", f"{best.lm_weight:.{DIGITS}g}"]
    if best.word_score:
        command += ["--word-score", f"{best.word_score:.{DIGITS}g}"]
    return shlex.join(command)
