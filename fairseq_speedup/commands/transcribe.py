"""Transcribe audio files of any format, rate and length.

    python -m fairseq_speedup transcribe --path checkpoint_best.pt a.wav b.flac

A line for each file on standard output: its name, a tab and the text, or with --json an object with
times. A file that cannot be used is reported on standard error, the others go on, and the exit
status says so.
"""

from fairseq_speedup.commands import arguments
from fairseq_speedup.decoding.options import DEFAULTS, DecodingOptions, check_options

DEFAULT_WINDOW = 30.0  # seconds
WINDOWS = ["window_seconds", "window_overlap"]
BEAM = ["ctc_decoder", "beam", "nbest", "kenlm_model", "lexicon", "lexicon_free", "lm_weight"]
BEAM += ["word_score", "sil_score", "beam_threshold", "beam_size_token", "blank_skip_threshold"]
BEAM += ["decoder_workers"]


def add_arguments(parser) -> None:
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", help="files; whatever libsndfile reads"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object for each file")
    model = parser.add_argument_group("model")
    arguments.add_checkpoint(
        model, "a fine-tuned checkpoint, ours, stock, an exported .onnx or a Hugging Face folder"
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


def run(args) -> None:
    from fairseq_speedup.decoding import transcribe

    transcribe.run(args)
