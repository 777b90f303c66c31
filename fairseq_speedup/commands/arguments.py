"""Arguments that several commands take, written once, and how help shows them."""

import argparse
import os
from dataclasses import fields

from fairseq_speedup.checkpoints.folders import check_model_folder
from fairseq_speedup.data.find_recordings import find_recordings
from fairseq_speedup.decoding.options import (
    DECODERS,
    OF_FAIRSEQ,
    DecodingOptions,
    option,
    read_overrides,
)

INFERENCE_FORMS = ["auto", "none", "fp32", "bf16", "int8", "fp16"]
MINUTES = 10  # of audio
CHOICES = {"ctc_decoder": DECODERS}
FORMS_OF_CHECKPOINTS = "ours, stock, or a Hugging Face folder"
SCORES = ("taylor", "activation")
PARTS = "channels,heads,units"
# options of how importance is measured, with their defaults
IMPORTANCE: dict = {"by": "taylor", "parts": PARTS, "length_seconds": 10}
# of fairseq-generate, in words of CTC
HELP_OF_FAIRSEQ = {
    "beam": "hypotheses that the beam search keeps",
    "nbest": "hypotheses of each recording, up to --beam",
    "lm_weight": "times the language model's log10-probabilities; with --kenlm-model",
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and the defaults that say something."""

    def _get_help_string(self, action):
        default = action.default
        says_nothing = any(default is each for each in (None, False, argparse.SUPPRESS))
        if says_nothing or default == "" or "default" in action.help or not action.option_strings:
            return action.help
        shown = f"{default:g}" if isinstance(default, float) else default
        return f"{action.help} (default: {shown})"


# -- model and data ------------------------------------------------------------------------------


def add_checkpoint(group, help=f"a fine-tuned checkpoint, {FORMS_OF_CHECKPOINTS}") -> None:
    group.add_argument("--path", required=True, metavar="MODEL", help=help)


def add_overrides(group) -> None:
    group.add_argument(
        "--model-overrides",
        default="{}",
        metavar="DICT",
        help="options of the model to change, as for fairseq-generate: \"{'keep_layers': '8'}\"",
    )


def add_dictionary(group) -> None:
    group.add_argument(
        "--data", help="folder with the dictionary, for checkpoints that do not hold it"
    )


def add_split(group, subset: str, help: str) -> None:
    """The folder of a data set and its split."""
    group.add_argument("data", help="folder with the manifests and labels")
    group.add_argument("--gen-subset", default=subset, metavar="SPLIT", help=help)


def add_some_audio(group) -> None:
    """Audio that something is measured on, without its labels; see check_data_or_audio."""
    group.add_argument("--audio", nargs="+", metavar="AUDIO", help="files, folders or globs")
    group.add_argument("--data", metavar="FOLDER", help="with manifests and labels, in its place")
    group.add_argument("--gen-subset", default="valid", metavar="SPLIT", help="split of --data")
    add_minutes(group)


def add_minutes(group, default: float | None = MINUTES) -> None:
    """``default`` None leaves it to the command to tell whether it is given."""
    group.add_argument(
        "--minutes",
        type=float,
        default=default,
        metavar="N",
        help=f"of audio that are used, drawn from all that is given (default: {MINUTES})",
    )


def check_minutes(args) -> None:
    """Raises ValueError for no amount of audio."""
    if not 0 < args.minutes < float("inf"):
        raise ValueError(f"--minutes {args.minutes} is out of range; it must be above 0")


def add_importance(group, counts: str) -> None:
    """How importance is measured, and of what.

    Args:
        counts: who counts MACs, for the help
    """
    group.add_argument(
        "--by",
        default=IMPORTANCE["by"],
        choices=SCORES,
        help="taylor: how much the model's posteriors would change, to the second order; "
        "activation: a part's share of the variance of what it is added to",
    )
    group.add_argument(
        "--parts",
        default=IMPORTANCE["parts"],
        metavar="PARTS",
        help="that may go, with commas between",
    )
    group.add_argument(
        "--length-seconds",
        type=float,
        default=IMPORTANCE["length_seconds"],
        metavar="N",
        help=f"of an utterance, at which {counts}",
    )


def check_importance(args) -> None:
    """Raises ValueError for options of :func:`add_importance` out of range, or no audio."""
    names = [each.strip() for each in args.parts.split(",")]
    if not set(names) <= set(PARTS.split(",")):
        raise ValueError(
            f"--parts {args.parts} must name some of {PARTS.replace(',', ', ')}, with commas "
            "between"
        )
    if not 0 < args.length_seconds < float("inf"):
        raise ValueError(
            f"--length-seconds {args.length_seconds} is out of range; it must be above 0"
        )
    check_minutes(args)
    check_data_or_audio(args)


def add_batch_size(group, default=8, help="utterances in a batch") -> None:
    group.add_argument("--batch-size", type=int, default=default, metavar="N", help=help)


def add_cpu(group) -> None:
    group.add_argument("--cpu", action="store_true", help="stay on the CPU")


def add_inference(group) -> None:
    group.add_argument(
        "--inference",
        default="auto",
        metavar=shown(INFERENCE_FORMS),
        help="form of the model that decodes: auto, what the checkpoint says (optimize leaves it "
        "there), else as it was trained; none, as it was trained; fp32, the same numbers, faster; "
        "bf16; int8 (on CPUs); fp16 (on GPUs)",
    )


def add_wer_budget(group) -> None:
    group.add_argument(
        "--wer-budget",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="points of WER that may be lost",
    )


def check_wer_budget(args) -> None:
    """Raises ValueError for one that is no number of points."""
    check_least(args, wer_budget=0)
    if args.wer_budget == float("inf"):
        raise ValueError("--wer-budget inf is out of range; it must be a number of points")


def add_overwrite(group, help="replace files that exist") -> None:
    group.add_argument("--overwrite", action="store_true", help=help)


# -- decoding ------------------------------------------------------------------------------------


def add_decoding(group, names: list[str], **defaults) -> None:
    """Options of :class:`DecodingOptions`, and fairseq's of ``OF_FAIRSEQ``.

    Args:
        names: which, in order
        defaults: that are other than those of fairseq-generate
    """
    own = {each.name: each for each in fields(DecodingOptions)}
    for name in names:
        default = own[name].default if name in own else OF_FAIRSEQ[name]
        default = defaults.get(name, default)
        text = own[name].metadata["help"] if name in own else HELP_OF_FAIRSEQ[name]
        if isinstance(default, bool):
            group.add_argument(option(name), action="store_true", help=text)
            continue
        group.add_argument(
            option(name),
            type=type(default),
            default=default,
            choices=CHOICES.get(name),
            metavar=None if name in CHOICES else _METAVARS[type(default)],
            help=text,
        )


_METAVARS = {int: "N", float: "X", str: "FILE"}


# -- checks --------------------------------------------------------------------------------------


def shown(names) -> str:
    """Choices as help shows them, where a user's own package may add to them."""
    return "{" + ",".join(names) + "}"


def check_name(args, name: str, names) -> None:
    """Raises ValueError for a value that is not among ``names``, unless --user-dir may have it."""
    value = getattr(args, name)
    if value is not None and value not in names and not args.user_dir:
        raise ValueError(
            f"{option(name)} {value} is unknown; valid values: {', '.join(names)}, or what the "
            "package of --user-dir registers"
        )


def check_least(args, **least) -> None:
    """Raises ValueError for a number below its least; None is none."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and not value >= smallest:
            raise ValueError(
                f"{option(name)} {value} is out of range; it must be {smallest} or more"
            )


def check_checkpoint(path: str) -> None:
    """Raises FileNotFoundError where there is none, ValueError for a folder that is none."""
    if os.path.isdir(path):
        check_model_folder(path)
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist or is not a file")


def check_model(args) -> None:
    """Raises FileNotFoundError or ValueError for no checkpoint, ValueError for bad overrides."""
    check_checkpoint(args.path)
    if hasattr(args, "model_overrides"):
        read_overrides(args.model_overrides)


def check_parent(path: str, named: str = "") -> None:
    """Raises FileNotFoundError where the folder of a file to be written does not exist.

    Args:
        named: the option and a blank, for the message
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{named}{path}: folder {folder} does not exist")


def check_free(path: str, overwrite: bool) -> None:
    """Raises ValueError where a file would be replaced, FileNotFoundError without its folder."""
    check_parent(path)
    if os.path.exists(path) and not overwrite:
        raise ValueError(f"{path} exists; give --overwrite to replace it")


def check_data_or_audio(args) -> None:
    """Of commands that take ``--data`` or ``--audio``; finds the recordings, ``audio_files``.

    Raises:
        ValueError: both are given, or neither
        OSError: what is given is not there
    """
    if (args.data is None) == (args.audio is None):
        raise ValueError("give either --data, a folder with labels, or --audio, files without")
    if args.data is not None and not os.path.isdir(args.data):
        raise FileNotFoundError(f"--data {args.data} is not a folder")
    find_audio(args)


def find_audio(args) -> None:
    """Finds the recordings of ``--audio``, ``audio_files``; none without it.

    Raises:
        OSError: what is given is not there
    """
    args.audio_files = [each.path for each in find_recordings(args.audio or [])]
    for each in args.audio_files:
        if not os.path.exists(each):
            raise FileNotFoundError(f"--audio {each} does not exist")
