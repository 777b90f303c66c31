"""Print what a model costs: parameters, MACs, time and memory, without data.

The model is a public size with random weights (--arch), a config of config/finetuning (--config) or
a checkpoint (--checkpoint), with model options after it:

    python -m fairseq_speedup profile --arch large downsample=conv downsample_factor=2

The lengths are --seconds, or one length in seconds a line, or a fairseq manifest (--lengths). With
--batch-size, utterances are padded to the longest of their batch and padding is counted.
"""

import os

from fairseq_speedup.architectures import ARCHITECTURES
from fairseq_speedup.commands import arguments

COUNTS = ["full", "modules"]
MIN_LABELS = 5  # fairseq's four special symbols and a label


def add_arguments(parser) -> None:
    model = parser.add_argument_group("model")
    which = model.add_mutually_exclusive_group()
    which.add_argument(
        "--arch", metavar=arguments.shown(ARCHITECTURES), help="public size, random weights"
    )
    which.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help=f"a fine-tuned one, {arguments.FORMS_OF_CHECKPOINTS}",
    )
    model.add_argument(
        "--config", metavar="YAML", help="of config/finetuning, for its model options"
    )
    model.add_argument(
        "--num-labels", type=int, default=32, metavar="N", help="dictionary size with --arch"
    )
    model.add_argument("options", nargs="*", metavar="option=value", help="model options")
    data = parser.add_argument_group("lengths")
    data.add_argument(
        "--seconds", default="10", metavar="X,X", help="comma-separated lengths of utterances"
    )
    data.add_argument(
        "--lengths", metavar="FILE", help="lengths: seconds, or a manifest .tsv; - is stdin"
    )
    arguments.add_batch_size(data, 1, "utterances in a padded batch")
    data.add_argument("--sort", action="store_true", help="sort by length before batching")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--count",
        choices=COUNTS,
        default="full",
        help="full, or modules: without what a counter of nn.Module layers misses (attention)",
    )
    measured.add_argument(
        "--time",
        type=int,
        default=3,
        metavar="N",
        help="batches to time, spread over the lengths",
    )
    measured.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: torch's")
    arguments.add_cpu(measured)
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write the figures to this file as well")
    arguments.add_overwrite(output, "replace the --json file")


def check(args) -> None:
    if args.json:
        arguments.check_free(args.json, args.overwrite)
    arguments.check_least(args, batch_size=1, threads=1, num_labels=MIN_LABELS)
    arguments.check_name(args, "arch", ARCHITECTURES)
    if args.checkpoint and args.config:
        raise ValueError("--config and --checkpoint exclude each other: give options instead")
    if args.checkpoint:
        arguments.check_checkpoint(args.checkpoint)
    if args.config and not os.path.isfile(args.config):
        raise FileNotFoundError(f"--config {args.config} does not exist or is not a file")
    for each in args.options:
        if "=" not in each:
            hint = "; a checkpoint is given as --checkpoint" if os.path.exists(each) else ""
            raise ValueError(f"{each!r} is not of the form option=value{hint}")
    is_pipe = args.lengths == "-" or (
        args.lengths and os.path.exists(args.lengths) and not os.path.isfile(args.lengths)
    )
    if not is_pipe:  # which is read once
        from fairseq_speedup.profiling.utterance_lengths import read_lengths

        read_lengths(args)


def run(args) -> None:
    from fairseq_speedup.profiling import profile

    profile.run(args)
