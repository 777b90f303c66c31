"""Build a lexicon: the words that decoding can find, each with its spelling in labels.

Takes the words of the training labels, DATA/train.{labels}, or those of --words. Each line written
is a word, a tab and its labels: CAT<TAB>C A T |.
"""

from fairseq_speedup.commands import arguments

NEEDS_FAIRSEQ = False


def add_arguments(parser) -> None:
    parser.add_argument("data", help="folder with the dictionary and the labels")
    parser.add_argument("--output", required=True, metavar="FILE", help="lexicon to write")
    parser.add_argument(
        "--labels", help="ltr, spm or another dict.LABELS.txt; default: the only one"
    )
    parser.add_argument("--split", default="train", help="split whose labels have the words")
    parser.add_argument(
        "--words",
        metavar="FILE",
        help="file whose words are taken in place of the labels': the first column of each line, "
        "or the vocabulary of an ARPA language model",
    )
    parser.add_argument(
        "--spm-model",
        metavar="FILE",
        help="sentencepiece model that spells --words; default: DATA/spm.model",
    )
    arguments.add_overwrite(parser, "replace a file that exists")


def check(args) -> None:
    arguments.check_parent(args.output, "--output ")


def run(args) -> None:
    from fairseq_speedup.decoding.language import lexicon

    lexicon.run(args)
