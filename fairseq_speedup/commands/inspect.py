"""Say what checkpoints are, and whether they are safe to load and fit for what.

Prints the family, where the config is and of which era, sizes, normalisation, dictionary,
parameters, MACs per second of audio, and what only pretraining needs. A file is read with the
restricted unpickler whatever the environment says, and the types its pickle asks for are listed
from its opcodes: nothing in a file runs. Exit status 1 when a file cannot be used.
"""

from pathlib import Path

PICTURES = (".png", ".svg", ".pdf")


def add_arguments(parser) -> None:
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="files, or folders in Hugging Face's form",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10,
        metavar="X",
        help="length of the utterance whose MACs are counted",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, one entry a file")
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="draw channels of the CNN, heads and feed-forward units by layer, all files side by "
        "side: what pruning has left (.png, .svg or .pdf)",
    )


def check(args) -> None:
    if not 0.1 <= args.seconds <= 3600:
        raise ValueError(f"--seconds {args.seconds} is out of range; it must be 0.1 to 3600")
    if args.picture is None:
        return
    from fairseq_speedup.report import pictures

    path = Path(args.picture)
    if path.suffix not in PICTURES:
        raise ValueError(f"--picture {path} must be a file that ends in {', '.join(PICTURES)}")
    if path.is_dir():
        raise ValueError(f"--picture {path} is a folder; give a file")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise ValueError(f"--picture {path} cannot be written: {there} is no folder")
    pictures.check_installed("leave --picture out")


def run(args) -> None:
    from fairseq_speedup.inspection import command
    from fairseq_speedup.report.pictures import draw_sizes

    command.run(args, draw_sizes)
