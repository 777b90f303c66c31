"""What early exit would do at every threshold, from a development set that is read once."""

from dataclasses import dataclass

import editdistance
import numpy as np
import torch
from fairseq import utils

from fairseq_speedup.decoding.generator import check_numbers, symbols_to_strip
from fairseq_speedup.decoding.greedy import GreedyDecoder
from fairseq_speedup.decoding.offline import Offline
from fairseq_speedup.decoding.results.scoring import Scoring
from fairseq_speedup.lengths import lengths_of
from fairseq_speedup.transformer.early_exit import (
    EXIT_CRITERIA,
    ExitOptionError,
    measuring_criteria,
)

DIGITS = 6  # of a threshold


def run(args) -> None:
    if args.exit_criterion not in measuring_criteria():
        raise ValueError(
            f"--exit-criterion {args.exit_criterion} measures nothing that a threshold could be "
            f"chosen for, or is unknown; valid values: {', '.join(measuring_criteria())}"
        )
    observed = observe(args)
    rows = [observed.at(t, args.exit_criterion) for t in observed.thresholds(args.thresholds)]
    full = observed.without_exits()
    measure = observed.measure
    print(f"{'threshold':>12}{f'{measure} %':>9}{'mean layers':>13}")
    print(f"{'no exit':>12}{full.wer_percent:>9.2f}{full.mean_layers:>13.2f}")
    for row in rows:
        print(f"{row.threshold:>12.{DIGITS}g}{row.wer_percent:>9.2f}{row.mean_layers:>13.2f}")
    good = [row for row in rows if row.wer_percent <= full.wer_percent + args.wer_budget]
    if not good:
        print(
            f"no threshold keeps the {measure} within {args.wer_budget} points of "
            f"{full.wer_percent:.2f}"
        )
        return
    best = min(good, key=lambda row: row.mean_layers)
    print(
        f"within {args.wer_budget} points of {measure}: {best.mean_layers:.2f} layers instead of "
        f"{full.mean_layers:.2f}, with\n--model-overrides \"{{'exit_criterion': "
        f"'{args.exit_criterion}', 'exit_threshold': {best.threshold:.{DIGITS}g}}}\""
    )


@dataclass
class Row:
    threshold: float
    wer_percent: float
    mean_layers: float


@dataclass
class Observed:
    """What every utterance would give at every exit.

    measured: (utterances, exits), by the criterion
    errors: (utterances, exits + 1), words wrong with the hypothesis of each exit and of the last
    layers: (exits + 1,), layers run up to each exit and in all
    num_words: in all references
    measure: what the error rate is called
    """

    measured: np.ndarray
    errors: np.ndarray
    layers: np.ndarray
    num_words: int
    measure: str = "WER"

    def thresholds(self, count: int) -> list[float]:
        """Rising, spread over what was measured, halfway between neighbours, with the digits that
        are printed: rounding must not move an utterance to the other side."""
        values = np.unique(self.measured)
        halfway = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
        picked = halfway[np.linspace(0, len(halfway) - 1, min(count, len(halfway))).astype(int)]
        return sorted({float(f"{value:.{DIGITS}g}") for value in picked})

    def at(self, threshold: float, criterion: str) -> Row:
        leave = EXIT_CRITERIA[criterion].leave(self.measured, threshold)
        leave = np.concatenate([leave, np.ones((len(leave), 1), dtype=bool)], axis=1)
        return self._row(threshold, leave.argmax(axis=1))  # the first exit that lets it go

    def without_exits(self) -> Row:
        return self._row(float("nan"), np.full(len(self.errors), len(self.layers) - 1))

    def _row(self, threshold, exits) -> Row:
        errors = self.errors[np.arange(len(exits)), exits].sum()
        return Row(threshold, 100 * errors / max(1, self.num_words), self.layers[exits].mean())


@torch.no_grad()
def observe(args) -> Observed:
    """Runs the model over the split.

    Raises:
        ValueError: the checkpoint has no exits, or gives NaN
    """
    overrides = {"exit_criterion": args.exit_criterion}
    try:
        offline = Offline(
            args.path, args.data, args.gen_subset, overrides, args.batch_size, args.cpu
        )
    except ExitOptionError:
        raise ValueError(
            f"--path {args.path}: it was fine-tuned without exits, which have the threshold: "
            "fine-tune with model.exit_layers=upper criterion._name=ctc_exits"
        ) from None
    exits = getattr(getattr(offline.model, "w2v_encoder", None), "exit", None)
    if exits is None:
        raise ValueError(f"--path {args.path}: the model has no exits (model.exit_layers)")
    labels = offline.label_words()
    post_process = labels.chosen(args.post_process, offline.task.cfg.labels)
    exits.observed = True
    dictionary = offline.dictionary
    decoder = GreedyDecoder(offline.blank)
    strip = symbols_to_strip(dictionary, offline.blank)

    def words(tokens) -> list[str]:
        text = dictionary.string(tokens, post_process, extra_symbols_to_ignore=strip)
        return text.split()

    measured, errors, num_words = [], [], 0
    for sample in offline.batches():
        output = offline.model(**sample["net_input"])
        lengths = lengths_of(output["padding_mask"], output["encoder_out"].transpose(0, 1))
        hypotheses = []
        for logits in [*output["exit_logits"].values(), output["encoder_out"]]:
            log_probs = utils.log_softmax(logits.float(), dim=-1)
            check_numbers(log_probs, lengths, sample)
            hypotheses.append(decoder.decode(log_probs, lengths))
        measured.append(torch.stack(list(output["exit_measured"].values()), dim=1).cpu().numpy())
        for i, target in enumerate(offline.references(sample)):
            reference = words(target)
            num_words += len(reference)
            errors.append(
                [editdistance.eval(words(each[i][0]["tokens"]), reference) for each in hypotheses]
            )
    layers = [exits.position(index) + 1 for index in exits.exits] + [len(exits.indices)]
    measure = Scoring(post_process=post_process).measure
    return Observed(
        np.concatenate(measured), np.array(errors), np.array(layers), num_words, measure
    )
