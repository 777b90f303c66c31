"""Choose --lm-weight and --word-score on a development set.

Runs the model over the split once, then decodes what it gave at one setting after another: a coarse
grid first, then ever smaller steps around the best. Prints the WER of each setting (of labels
without a boundary between words, their error rate, UER) and the command that decodes with the best.
"""

import argparse
import os

from fairseq_speedup.commands import arguments
from fairseq_speedup.decoding.options import OF_SEARCH, check_options, options_of_search


def add_arguments(parser) -> None:
    model = parser.add_argument_group("model and data")
    arguments.add_split(model, "valid", "split to tune on")
    arguments.add_checkpoint(model)
    arguments.add_overrides(model)
    arguments.add_batch_size(model)
    arguments.add_cpu(model)
    model.add_argument(
        "--emissions",
        metavar="FILE",
        help="keeps what the model gave; written where it does not exist",
    )
    search = parser.add_argument_group("search")
    search.add_argument(
        "--kenlm-model", required=True, metavar="FILE", help="ARPA file or KenLM binary"
    )
    arguments.add_decoding(search, ["beam", *OF_SEARCH[1:]], beam=50)
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument("--rounds", type=int, default=2, metavar="N", help="of ever smaller steps")
    tuning.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="processes that decode; default: cores",
    )


def check(args) -> None:
    arguments.check_least(args, rounds=0, batch_size=1, workers=1)
    generation = argparse.Namespace(beam=args.beam, nbest=1, lm_weight=1.0)  # one of the weights
    check_options(options_of_search(args), generation)
    arguments.check_model(args)
    if args.emissions:
        arguments.check_parent(args.emissions, "--emissions ")


def run(args) -> None:
    from fairseq_speedup.decoding import tune_lm

    tune_lm.run(args)
