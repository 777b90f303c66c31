"""``python -m fairseq_speedup COMMAND``: what fairseq's own commands do not do."""

import argparse
import sys
from pathlib import Path

from fairseq.utils import import_user_module

from fairseq_speedup import calibration, inspection
from fairseq_speedup.data import spm
from fairseq_speedup.decoding import lexicon, merge, transcribe, tune_lm
from fairseq_speedup.export import command as export
from fairseq_speedup.hugging_face import command as convert
from fairseq_speedup.profiling import command as profile
from fairseq_speedup.report import command as report

COMMANDS = {
    "calibrate": calibration,
    "convert": convert,
    "inspect": inspection,
    "export": export,
    "lexicon": lexicon,
    "merge": merge,
    "profile": profile,
    "report": report,
    "spm": spm,
    "transcribe": transcribe,
    "tune-lm": tune_lm,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fairseq_speedup", description=__doc__)
    parser.add_argument(
        "--user-dir",
        help="folder of a package with reductions of your own, as fairseq's commands take it",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    try:
        if args.user_dir and not Path(args.user_dir).is_dir():
            raise FileNotFoundError(f"--user-dir {args.user_dir} is not a folder")
        import_user_module(args)
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
