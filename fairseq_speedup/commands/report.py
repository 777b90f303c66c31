"""Compare decoded runs: a table with significance, the Pareto front, and pictures.

    python -m fairseq_speedup report RUNS --baseline full

RUNS holds the --results-path of each run somewhere in it. A folder RUNS/conv2/seed1/test is of the
row conv2: the path up to the part that names the seed. Rows of one name in several RUNS are one
row, with the seeds of each. Rows are compared by a paired bootstrap over utterances and seeds.
Writes report.md, report.csv and pictures into --output.
"""

NEEDS_FAIRSEQ = False


def add_arguments(parser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUNS", help="folders that hold the results, or files of --save"
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--baseline",
        metavar="ROW",
        help="row that the others are compared with; default: the most MACs",
    )
    rows.add_argument(
        "--rows",
        metavar="FILE",
        help="file with a row's name on each line and, after a tab, what to call it",
    )
    times = rows.add_mutually_exclusive_group()
    times.add_argument(
        "--times",
        metavar="RUNS",
        help="take times from other decodings of the same rows, made in turn on a quiet machine",
    )
    times.add_argument(
        "--no-times",
        action="store_true",
        help="leave times out: the rows were decoded side by side, or on different machines",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        metavar="FOLDER",
        help="folder to write into; default: report in the first of RUNS, of a file its folder",
    )
    output.add_argument(
        "--save", metavar="FILE", help="write what all rows are made of into one .json or .json.gz"
    )
    output.add_argument("--no-pictures", action="store_true", help="needs no matplotlib")


def run(args) -> None:
    from fairseq_speedup.report import command

    command.run(args)
