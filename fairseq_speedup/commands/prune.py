"""Cut out of a fine-tuned model what prune_target taught it to do without.

CHECKPOINT is of a training with model.prune_target (criterion ctc_pruning, ctc_exits or
ctc_distillation), the last one: checkpoint_best is of an update when the target was not reached,
and more right. What its gates close is cut out: where training left somewhat more or less than
prune_target of the MACs, the gates nearest to opening or closing make up for it. The values of the
others are multiplied into the weights. The result is compared with the model that had the gates on
random audio, and written if it gives the same: a plain smaller model, that decodes, exports and is
a model.w2v_path to train on.
"""

from fairseq_speedup.commands import arguments


def add_arguments(parser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint with gates")
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument(
        "--any-share",
        action="store_true",
        help="cut what gates close as they are, even where that is far from prune_target",
    )
    arguments.add_overwrite(parser, "replace FILE if it exists")


def check(args) -> None:
    arguments.check_checkpoint(args.checkpoint)
    arguments.check_free(args.output, args.overwrite)


def run(args) -> None:
    from fairseq_speedup import prune

    prune.run(args)
