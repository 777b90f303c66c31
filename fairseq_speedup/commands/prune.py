"""Cut out of a fine-tuned model what it learned to do without, or what audio shows to matter least.

    python -m fairseq_speedup prune checkpoint_last.pt --output pruned.pt
    python -m fairseq_speedup prune checkpoint_best.pt --target 0.7 --audio RECORDINGS \\
        --output pruned.pt

Without --target CHECKPOINT is of a training with model.prune_target (criterion ctc_pruning,
ctc_exits or ctc_distillation), the last one: checkpoint_best is of an update when the target was
not reached, and more right. What its gates close is cut out: where training left somewhat more or
less than prune_target of the MACs, the gates nearest to opening or closing make up for it. The
values of the others are multiplied into the weights.

With --target CHECKPOINT is any that was fine-tuned, and nothing was trained for this: how important
each part is, is measured on some minutes of audio, without labels; what matters least per MAC goes,
until the target is kept, and those that stay take over what they can. With --layers whole layers
go, those that change what they are given least. It costs words; training on, with the whole model
as teacher, wins some back.

The result is compared on random audio with the model whose gates are closed, and written if it
gives the same: a plain smaller model, that decodes, exports and is a model.w2v_path to train on.
"""

from fairseq_speedup.commands import arguments


def add_arguments(parser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="with gates; with --target a fine-tuned one, "
        f"{arguments.FORMS_OF_CHECKPOINTS}, without",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument(
        "--any-share",
        action="store_true",
        help="cut what gates close as they are, even where that is far from prune_target",
    )
    arguments.add_overwrite(parser, "replace FILE if it exists")
    group = parser.add_argument_group("by importance, without training")
    group.add_argument(
        "--target",
        type=float,
        metavar="SHARE",
        help="of the model's MACs that is left, above 0 and below 1",
    )
    arguments.add_importance(group, "--target counts MACs")
    group.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="in place of --target: layers that stay; one after another that goes which changes "
        "its input least, and neither the first, the last nor one with an exit",
    )
    audio = parser.add_argument_group("audio that importance is measured on")
    arguments.add_some_audio(audio)
    arguments.add_cpu(audio)


def check(args) -> None:
    arguments.check_checkpoint(args.checkpoint)
    arguments.check_free(args.output, args.overwrite)
    if args.layers is not None:
        if args.target is not None:
            raise ValueError(
                "--layers leaves out layers, --target parts of them: give one, then the other on "
                "what it wrote"
            )
        if args.layers < 1:
            raise ValueError(f"--layers {args.layers} is out of range; it must be 1 or more")
        _check_no_importance(args, "--layers leaves out whole layers")
        _check_no_gates(args, "--layers")
        arguments.check_importance(args)
        return
    if args.target is None:
        if args.audio or args.data:
            raise ValueError(
                "--audio and --data are to measure importance on: give --target too, the share of "
                "the MACs that is left, or --layers"
            )
        _check_no_importance(args, "without it what gates close is cut")
        return
    if not 0 < args.target < 1:
        raise ValueError(
            f"--target {args.target} is out of range; it must be above 0 and below 1, a share of "
            "the model's MACs"
        )
    _check_no_gates(args, "--target")
    arguments.check_importance(args)


def _check_no_importance(args, why: str) -> None:
    for option, default in arguments.IMPORTANCE.items():
        if getattr(args, option) != default:
            raise ValueError(f"--{option.replace('_', '-')} is for --target: {why}")


def _check_no_gates(args, option: str) -> None:
    if args.any_share:
        raise ValueError(
            f"--any-share is for gates that were learned, {option} for a model without"
        )


def run(args) -> None:
    if args.layers is not None:
        from fairseq_speedup.without_training import leave_out_layers

        leave_out_layers.run(args)
        return
    from fairseq_speedup.without_training import prune

    prune.run(args)
