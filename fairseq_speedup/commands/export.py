"""Write a fine-tuned model, as reduced, into one file that runs without fairseq.

    python -m fairseq_speedup export --path checkpoint_best.pt --output model.onnx
    python -m fairseq_speedup export --path checkpoint_best.pt --to openvino --output model.xml

The file takes a waveform (batch, samples) and lengths (batch,) and gives log-probabilities (batch,
time, labels) and their frames (batch,). It is compared with the model before it gets its name. An
OpenVINO model is two files: the weights are in a .bin beside the .xml.
"""

import os

from fairseq_speedup.commands import arguments

ENGINES = ["onnx", "openvino"]
OPENVINO_ENDINGS = (".xml", ".bin")
OF_OPENVINO_INT8 = ("audio", "gen_subset", "minutes", "wer_budget")
SUBSET = "valid"


def add_arguments(parser) -> None:
    model = parser.add_argument_group("model")
    arguments.add_checkpoint(model)
    arguments.add_overrides(model)
    arguments.add_dictionary(model)
    file = parser.add_argument_group("file")
    file.add_argument("--output", required=True, metavar="FILE", help="file to write")
    file.add_argument(
        "--to", choices=ENGINES, default="onnx", help="what reads it; openvino: Intel's, for CPUs"
    )
    file.add_argument(
        "--int8", action="store_true", help="int8 matrix products: smaller, faster, not the same"
    )
    file.add_argument(
        "--int8-cnn",
        action="store_true",
        help="with --int8, the convolutional front-end too, which can cost many words",
    )
    arguments.add_overwrite(file, "replace the --output file")
    int8 = parser.add_argument_group(
        "int8 of OpenVINO", "its scales are found on audio: of --audio, or of a split of --data"
    )
    int8.add_argument("--audio", nargs="+", metavar="AUDIO", help="files, folders or globs")
    int8.add_argument("--gen-subset", metavar="SPLIT", help=f"split of --data (default: {SUBSET})")
    arguments.add_minutes(int8, default=None)
    int8.add_argument(
        "--wer-budget",
        type=float,
        metavar="POINTS",
        help="points of WER that may be lost on that audio (without labels, distance from the "
        "transcripts in fp32): parts of the model stay in fp32 until this holds",
    )


def check(args) -> None:
    arguments.check_model(args)
    written = [args.output]
    if args.to == "openvino":
        stem, ending = os.path.splitext(args.output)
        if ending != OPENVINO_ENDINGS[0]:
            raise ValueError(
                f"--output {args.output}: a model of --to openvino is a file that ends with .xml, "
                "with its weights in a .bin beside it"
            )
        written = [stem + each for each in OPENVINO_ENDINGS]
    for each in written:
        if os.path.exists(each) and not args.overwrite:
            raise ValueError(f"--output {each} exists; give --overwrite to replace it")
    arguments.check_parent(args.output, "--output ")
    if args.int8_cnn and not args.int8:
        raise ValueError("--int8-cnn is more of --int8: give both, or neither")
    args.audio_files = []
    if args.to == "openvino" and args.int8:
        _check_calibration(args)
        return
    for name in OF_OPENVINO_INT8:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for --to openvino --int8: leave it out")


def _check_calibration(args) -> None:
    """Of the audio that int8 is calibrated on; finds the recordings, and sets the defaults.

    Raises:
        ValueError: there is none, or an option is out of range
        OSError: what is given is not there
    """
    args.minutes = arguments.MINUTES if args.minutes is None else args.minutes
    args.gen_subset = args.gen_subset or SUBSET
    arguments.check_minutes(args)
    if args.wer_budget is not None:
        arguments.check_wer_budget(args)
    if args.audio is None and args.data is None:
        raise ValueError(
            "--int8 of --to openvino finds its scales on audio: give --audio, files, or --data, a "
            "folder with a split (--gen-subset)"
        )
    arguments.find_audio(args)


def run(args) -> None:
    from fairseq_speedup.export import command

    command.run(args)
