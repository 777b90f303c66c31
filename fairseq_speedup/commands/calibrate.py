"""Choose the threshold of early exit on a development set, read once.

Runs every layer and every exit on each utterance, then prints WER (of labels without a boundary
between words, their error rate, UER) and mean layers for a range of thresholds, and the one that
meets --wer-budget with the fewest layers.
"""

from fairseq_speedup.commands import arguments

CRITERIA = ["entropy", "similarity"]


def add_arguments(parser) -> None:
    model = parser.add_argument_group("model and data")
    arguments.add_split(model, "valid", "split to calibrate on")
    arguments.add_checkpoint(model, "checkpoint of a model with exits")
    arguments.add_batch_size(model)
    arguments.add_cpu(model)
    model.add_argument(
        "--post-process",
        metavar="{letter,sentencepiece,none}",
        help="how labels become words; default: what fits the labels",
    )
    search = parser.add_argument_group("thresholds")
    search.add_argument(
        "--exit-criterion",
        default="entropy",
        metavar=arguments.shown(CRITERIA),
        help="what is compared with them",
    )
    search.add_argument("--thresholds", type=int, default=12, metavar="N", help="how many to try")
    arguments.add_wer_budget(search)


def check(args) -> None:
    arguments.check_least(args, thresholds=1, batch_size=1)
    arguments.check_wer_budget(args)
    arguments.check_name(args, "exit_criterion", CRITERIA)
    arguments.check_model(args)


def run(args) -> None:
    from fairseq_speedup.without_training import calibration

    calibration.run(args)
