"""Train a sentencepiece model and write its labels for fairseq (task.labels=spm).

Reads the transcripts DATA/{split}.wrd, or DATA/{split}.ltr where there is none; writes
DATA/spm.model, DATA/spm.vocab, DATA/dict.spm.txt and DATA/{split}.spm.
"""

from fairseq_speedup.commands import arguments

NEEDS_FAIRSEQ = False
MODEL_TYPES = ["unigram", "bpe"]


def add_arguments(parser) -> None:
    parser.add_argument("data", help="folder with the manifests and transcripts")
    parser.add_argument(
        "--vocab-size", type=int, default=500, metavar="N", help="pieces, three specials in"
    )
    parser.add_argument(
        "--train-split", default="train", metavar="SPLIT", help="split the model is trained on"
    )
    parser.add_argument(
        "--splits", help="comma-separated splits to write; default: every one with a transcript"
    )
    parser.add_argument("--model-type", choices=MODEL_TYPES, default="unigram", help="its kind")
    arguments.add_overwrite(parser)


def run(args) -> None:
    from fairseq_speedup.data import spm

    spm.run(args)
