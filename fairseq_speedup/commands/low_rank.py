"""Give a fine-tuned model linear layers of low rank, from some minutes of audio, without training.

    python -m fairseq_speedup low-rank checkpoint_best.pt --audio RECORDINGS --output low.pt

What each linear layer of the transformer gives on the audio is looked at: the fewest directions
that hold a share of its variance are kept, and its matrix becomes two, through them (LiteASR, arXiv
2502.20583). A layer whose two matrices would cost more than the one stays as it is. The result
decodes, exports and is a model.w2v_path to train on, with the model it was made of as teacher.
"""

from fairseq_speedup.commands import arguments


def add_arguments(parser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help=f"a fine-tuned checkpoint, {arguments.FORMS_OF_CHECKPOINTS}",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write")
    arguments.add_overwrite(parser, "replace FILE if it exists")
    audio = parser.add_argument_group("audio")
    arguments.add_some_audio(audio)
    arguments.add_cpu(audio)
    ranks = parser.add_argument_group("ranks")
    ranks.add_argument(
        "--energy-attention",
        type=float,
        default=0.99,
        metavar="SHARE",
        help="of the variance that is kept in query, key, value and output of attention",
    )
    ranks.add_argument(
        "--energy-ffn",
        type=float,
        default=0.999,
        metavar="SHARE",
        help="likewise in the feed-forward layers",
    )
    ranks.add_argument(
        "--max-layer-macs",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="a linear layer that would keep this share of its MACs, or more, stays as it is",
    )


def check(args) -> None:
    arguments.check_checkpoint(args.checkpoint)
    arguments.check_free(args.output, args.overwrite)
    for name in ("energy_attention", "energy_ffn", "max_layer_macs"):
        value = getattr(args, name)
        if not 0 < value <= 1:
            raise ValueError(
                f"--{name.replace('_', '-')} {value} is out of range; it must be above 0 and at "
                "most 1"
            )
    arguments.check_minutes(args)
    arguments.check_data_or_audio(args)


def run(args) -> None:
    from fairseq_speedup.without_training import factorize

    factorize.run(args)
