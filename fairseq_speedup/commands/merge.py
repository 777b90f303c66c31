"""Merge the results of shards, and their error rate.

Each of RESULTS is the --results-path of one fairseq-generate --num-shards N --shard-id I. Writes
generate-{subset}.txt, compute.json, and the n-best and CTM files where the shards have them, into
--output, as one run would have; the lines are in the order of the data set.
"""

from fairseq_speedup.commands import arguments

NEEDS_FAIRSEQ = False


def add_arguments(parser) -> None:
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a shard's --results-path")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--gen-subset", default="test", metavar="SPLIT", help="split that was decoded"
    )
    arguments.add_overwrite(parser, "replace results that exist")


def run(args) -> None:
    from fairseq_speedup.decoding.results import merge

    merge.run(args)
