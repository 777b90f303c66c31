"""Convert a Hugging Face folder to a fairseq checkpoint, or the other way round, and compare.

SOURCE is a folder with config.json and weights (Wav2Vec2, HuBERT, WavLM or Data2VecAudio; the
base model, ForPreTraining or ForCTC), or a fairseq checkpoint, pretrained or fine-tuned with CTC,
stock or ours without reductions. What is written is loaded again and run beside the source on
random audio, alone and in a padded batch; where they differ, nothing is written.
"""

import os

from fairseq_speedup.commands import arguments


def add_arguments(parser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="folder in Hugging Face's form, or fairseq checkpoint"
    )
    parser.add_argument("target", metavar="TARGET", help="checkpoint, or folder, to write")
    parser.add_argument(
        "--normalize",
        choices=["true", "false"],
        help="whether waveforms are normalised, for a folder without preprocessor_config.json "
        "and processor_config.json",
    )
    parser.add_argument(
        "--dictionary",
        metavar="FILE",
        help="dict.ltr.txt of a CTC checkpoint that does not hold its own",
    )
    arguments.add_overwrite(parser)


def check(args) -> None:
    parent = os.path.dirname(os.path.abspath(args.target))
    if not os.path.isdir(parent):
        raise FileNotFoundError(f"folder {parent} does not exist")
    if not os.path.exists(args.source):
        raise FileNotFoundError(f"checkpoint {args.source} does not exist or is not a file")


def run(args) -> None:
    from fairseq_speedup.hugging_face import convert

    convert.run(args)
