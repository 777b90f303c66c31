"""Write a fine-tuned model, as reduced, into one file that runs without fairseq.

    python -m fairseq_speedup export --path checkpoint_best.pt --output model.onnx

The file takes a waveform (batch, samples) and lengths (batch,) and gives log-probabilities (batch,
time, labels) and their frames (batch,). It is compared with the model before it gets its name.
"""

import os

from fairseq_speedup.commands import arguments


def add_arguments(parser) -> None:
    model = parser.add_argument_group("model")
    arguments.add_checkpoint(model)
    arguments.add_overrides(model)
    arguments.add_dictionary(model)
    file = parser.add_argument_group("file")
    file.add_argument("--output", required=True, metavar="FILE", help="file to write")
    file.add_argument(
        "--int8", action="store_true", help="int8 matrix products: smaller, faster, not the same"
    )
    arguments.add_overwrite(file, "replace the --output file")


def check(args) -> None:
    arguments.check_model(args)
    if os.path.exists(args.output) and not args.overwrite:
        raise ValueError(f"--output {args.output} exists; give --overwrite to replace it")
    folder = os.path.dirname(os.path.abspath(args.output))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--output {args.output}: folder {folder} does not exist")


def run(args) -> None:
    from fairseq_speedup.export import command

    command.run(args)
