"""Order a fine-tuned model's parts by what they are worth, for training it at many widths.

    python -m fairseq_speedup widths checkpoint_best.pt --widths 0.7 0.5 --audio RECORDINGS \\
        --output ordered.pt

How important each channel of the CNN, attention head and unit of the feed-forward layers is, is
measured on some minutes of audio, without labels. The result is the same model, its parts in that
order, and says how many of each layer's a width has, so that it costs about that share of the
model's MACs: what matters least per MAC is not in it, and what a width has, all wider ones have.

It is a model.w2v_path to train on, with 'model.widths=[1,0.7,0.5]' and criterion._name=
ctc_in_place_distillation. What that gives decodes at each with --model-overrides "{'width': 0.5}":
a plain smaller model, as prune makes it.
"""

from fairseq_speedup.commands import arguments


def add_arguments(parser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help=f"a fine-tuned one, {arguments.FORMS_OF_CHECKPOINTS}",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write")
    arguments.add_overwrite(parser, "replace FILE if it exists")
    group = parser.add_argument_group("widths")
    group.add_argument(
        "--widths",
        type=float,
        nargs="+",
        required=True,
        metavar="SHARE",
        help="of the model's MACs, above 0 and below 1, one or more beside the whole",
    )
    arguments.add_importance(group, "a width counts MACs")
    audio = parser.add_argument_group("audio that importance is measured on")
    arguments.add_some_audio(audio)
    arguments.add_cpu(audio)


def check(args) -> None:
    arguments.check_checkpoint(args.checkpoint)
    arguments.check_free(args.output, args.overwrite)
    for width in args.widths:
        if not 0 < width < 1:
            raise ValueError(
                f"--widths {width:g} is out of range; each must be above 0 and below 1, a share of "
                "the model's MACs (all of it is a width in any case)"
            )
    if len(set(args.widths)) < len(args.widths):
        raise ValueError(f"--widths {' '.join(map('{:g}'.format, args.widths))} repeats one")
    arguments.check_importance(args)


def run(args) -> None:
    from fairseq_speedup.without_training import order_widths

    order_widths.run(args)
