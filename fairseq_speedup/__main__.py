"""``python -m fairseq_speedup COMMAND``: what fairseq's own commands do not do."""

import argparse
import sys

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
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
