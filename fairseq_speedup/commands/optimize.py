"""Make a fine-tuned model faster on this machine, without training.

    python -m fairseq_speedup optimize checkpoint_best.pt --data DATA --gen-subset valid \\
        --wer-budget 0.5 --output FASTER

Tries what this machine can run: forms of --inference, layers left out, heads, units and channels
that matter least on two minutes of the audio, linear layers of low rank, frames that merge, exits
and speeds that the model has, ONNX Runtime, OpenVINO, batch sizes and threads. Each is measured
beside the model as it is, for words, time, MACs and memory; the best are combined while
--wer-budget holds, and each combination is measured. FASTER/model.pt carries the choice: it decodes
so without an option.

Without labels give --audio: then the measure is the distance from the model's own transcripts.
Broken off, the same command goes on from what it had measured.
"""

import argparse
import contextlib

from fairseq_speedup.commands import arguments
from fairseq_speedup.decoding.options import OF_SEARCH, DecodingOptions, check_options

BEAM = ["ctc_decoder", "beam", "lm_weight", "word_score", *OF_SEARCH]
UNITS = {"s": 1, "m": 60, "h": 3600}


def add_arguments(parser) -> None:
    parser.add_argument(
        "path",
        metavar="MODEL",
        help="a fine-tuned checkpoint, ours, stock or a Hugging Face folder",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new, or of a run before")
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="FOLDER", help="with manifests and labels")
    data.add_argument("--gen-subset", default="valid", metavar="SPLIT", help="split to choose on")
    data.add_argument("--labels", help="ltr, spm or another dict.LABELS.txt; default: the only one")
    data.add_argument(
        "--post-process",
        metavar="{letter,sentencepiece,none}",
        help="how labels become words; default: what fits the labels",
    )
    data.add_argument(
        "--audio",
        nargs="+",
        metavar="AUDIO",
        help="files, folders or globs, where there are no labels",
    )
    data.add_argument(
        "--max-utterances", type=int, metavar="N", help="so many, evenly over their lengths"
    )
    search = parser.add_argument_group("search")
    arguments.add_wer_budget(search)
    search.add_argument(
        "--time-limit",
        type=seconds,
        metavar="TIME",
        help="20m, 2h, 90s or 90, counted from the first measurement: nothing new is tried after "
        "it, but for the first candidate; trying the commands comes on top; default: none",
    )
    arguments.add_overrides(search)
    arguments.add_cpu(search)
    arguments.add_overwrite(search, "begin anew in a folder of a run before")
    search.add_argument("--json", action="store_true", help="print JSON in place of the page")
    arguments.add_decoding(parser.add_argument_group("decoding"), list(dict.fromkeys(BEAM)))


def seconds(text: str) -> float:
    """20m, 2h, 90s or, without a unit, a number of seconds.

    Raises:
        argparse.ArgumentTypeError: another text
    """
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1)
    with contextlib.suppress(ValueError):
        if 0 < (found := float(number) * unit) < float("inf"):
            return found
    raise argparse.ArgumentTypeError(
        f"{text!r} is no time; valid are 20m, 2h, 90s or a number of seconds"
    )


def check(args) -> None:
    arguments.check_checkpoint(args.path)
    arguments.check_least(args, max_utterances=1)
    arguments.check_wer_budget(args)
    arguments.check_data_or_audio(args)
    args.nbest = 1
    own = {each: getattr(args, each) for each in BEAM if hasattr(DecodingOptions, each)}
    check_options(DecodingOptions(**own), args)
    args.decoding = decoding_of(args)


def decoding_of(args) -> dict:
    """Options of decoding that are not at their defaults."""
    if args.ctc_decoder == "greedy":
        return {}
    fields = DecodingOptions.__dataclass_fields__
    given = {name: getattr(args, name) for name in BEAM}
    return {
        name: value
        for name, value in given.items()
        if name not in fields or value != fields[name].default
    }


def run(args) -> None:
    from fairseq_speedup.optimize import run as optimize

    optimize.run(args)
