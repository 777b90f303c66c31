"""Transcribe audio files of any format, rate and length.

    python -m fairseq_speedup transcribe --path checkpoint_best.pt a.wav b.flac

A line for each file on standard output: its name, a tab and the text, or with --json an object with
times. With --output-dir, files instead, named as the recordings are below the folder that all have
in common; those that are finished are left out when the command is given again:

    python -m fairseq_speedup transcribe --path checkpoint_best.pt talks --output-dir texts \\
        --format text,srt

A file that cannot be used is reported on standard error, the others go on, and the exit status says
so.
"""

import os

from fairseq_speedup.commands import arguments
from fairseq_speedup.data.find_recordings import find_recordings
from fairseq_speedup.decoding.options import DEFAULTS, DecodingOptions, check_options

DEFAULT_WINDOW = 30.0  # seconds
WINDOWS = ["window_seconds", "window_overlap"]
FORMATS = ["text", "json", "srt", "vtt", "ctm"]
BEAM = ["ctc_decoder", "beam", "nbest", "kenlm_model", "lexicon", "lexicon_free", "lm_weight"]
BEAM += ["word_score", "sil_score", "beam_threshold", "beam_size_token", "blank_skip_threshold"]
BEAM += ["decoder_workers"]


def add_arguments(parser) -> None:
    parser.add_argument(
        "audio",
        nargs="+",
        metavar="AUDIO",
        help="whatever libsndfile reads: files, folders, globs, or - for standard input",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", action="store_true", help="a JSON object for each file, on standard output"
    )
    output.add_argument("--output-dir", metavar="FOLDER", help="write files into this folder")
    output.add_argument(
        "--format",
        metavar=arguments.shown(FORMATS),
        help="of the files in --output-dir; several with commas (default: text)",
    )
    arguments.add_overwrite(output, "transcribe again what is finished in --output-dir")
    model = parser.add_argument_group("model")
    arguments.add_checkpoint(
        model,
        "a fine-tuned checkpoint, ours, stock, an exported .onnx or .xml, or a Hugging Face folder",
    )
    arguments.add_overrides(model)
    arguments.add_dictionary(model)
    speed = parser.add_argument_group("speed and memory")
    arguments.add_inference(speed)
    arguments.add_batch_size(speed, 1, "files, or windows of one, at once")
    arguments.add_decoding(speed, WINDOWS, window_seconds=DEFAULT_WINDOW)
    arguments.add_cpu(speed)
    arguments.add_decoding(parser.add_argument_group("decoding"), BEAM)


def check(args) -> None:
    arguments.check_least(args, batch_size=1)
    arguments.check_name(args, "inference", arguments.INFERENCE_FORMS)
    given = {name: getattr(args, name) for name in DEFAULTS if hasattr(args, name)}
    check_options(DecodingOptions(**given), args)
    arguments.check_model(args)
    _check_output(args)
    args.recordings = find_recordings(args.audio)


def _check_output(args) -> None:
    """Makes ``args.formats``.

    Raises:
        ValueError: an unknown format, or options that mean nothing together
        OSError: a folder that cannot be written
    """
    args.formats = ["text"]
    if args.format is not None:
        args.formats = list(dict.fromkeys(each.strip() for each in args.format.split(",")))
    for each in args.formats:
        if each not in FORMATS:
            raise ValueError(f"--format {each} is unknown; valid values: {', '.join(FORMATS)}")
    if not args.output_dir:
        for name in ("format", "overwrite"):
            if getattr(args, name):
                raise ValueError(f"--{name} is for the files in a folder: give --output-dir")
        return
    if args.json:
        raise ValueError("--json is for standard output: give --format json with --output-dir")
    existing = os.path.abspath(args.output_dir)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise NotADirectoryError(f"--output-dir {args.output_dir}: {existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"--output-dir {args.output_dir}: {existing} is not writable")


def run(args) -> None:
    from fairseq_speedup.transcription import transcribe

    transcribe.run(args)
