"""The command line: ``python -m fairseq_speedup COMMAND`` or ``fairseq-speedup COMMAND``.

A command is a module here, named as the user types it, and a line in :data:`TASKS`. It has

- a docstring, whose first line says what it does and whose whole is its help,
- ``add_arguments(parser)``,
- ``run(args)``, which imports the work,
- where arguments can be checked without it, ``check(args)``, called first; it raises what ``run``
  does,
- ``NEEDS_FAIRSEQ = False`` where it works without the models, task and criterions.

Help and errors in arguments must not take seconds: neither this package nor what its modules
import at their top imports torch or fairseq.
"""

import argparse
import importlib
import os
import sys

from fairseq_speedup.commands.arguments import HelpFormatter
from fairseq_speedup.console import library_warnings, progress

# what there is to do: commands by name, and what fairseq's own do with this plugin
TASKS: dict[str, dict[str, str | None]] = {
    "Make my model faster": {
        "optimize": None,
        "fairseq-generate": "(fairseq's) The same weights, faster: --inference fp32, int8.",
        "profile": None,
        "calibrate": None,
        "export": None,
        "low-rank": None,
    },
    "Fine-tune a faster one": {
        "fairseq-hydra-train": "(fairseq's) Any reduction in one line of config.",
        "prune": None,
        "widths": None,
        "spm": None,
        "convert": None,
    },
    "Decode": {
        "fairseq-generate": "(fairseq's) Decode a data set: transcripts, WER, and what it cost.",
        "transcribe": None,
        "lexicon": None,
        "tune-lm": None,
        "merge": None,
    },
    "Look inside": {
        "inspect": None,
        "report": None,
    },
}
COMMANDS = [name for lines in TASKS.values() for name, said in lines.items() if said is None]


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; what it does is said where there is none.

    Args:
        arguments: of the command line; default: this process's
    Returns:
        exit status: 1 for what cannot be used, named on standard error
    Raises:
        SystemExit: help was asked for (0), or the arguments are wrong (2)
    """
    library_warnings.leave_out()
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    command = load(args.command)
    try:
        _check(args, command)
        if args.user_dir or getattr(command, "NEEDS_FAIRSEQ", True):
            with progress.step("starting PyTorch and fairseq"):
                _register(args)
        command.run(args)
    except BrokenPipeError:  # who reads has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, nor does the end of the process write
        return 0
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def load(name: str):
    """The module of a command."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with arguments in a line, without all that there are."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


class CommandParser(Parser):
    """Of one command, which names itself where it does not know an argument."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def build_parser() -> argparse.ArgumentParser:
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    prog = name if name == "fairseq-speedup" else "python -m fairseq_speedup"
    modules = {each: load(each) for each in COMMANDS}
    parser = Parser(
        prog=prog,
        description="Fine-tuned speech SSL models, faster.",
        epilog=_overview(modules, prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--user-dir",
        metavar="FOLDER",
        help="package with reductions of your own, as fairseq's commands take it",
    )
    subparsers = parser.add_subparsers(
        metavar="COMMAND",
        dest="command",
        help="one of the commands below",
        parser_class=CommandParser,
    )
    for each, module in modules.items():
        subparser = subparsers.add_parser(
            each, description=module.__doc__, formatter_class=HelpFormatter
        )
        module.add_arguments(subparser)
    return parser


def _overview(modules: dict, prog: str) -> str:
    """All commands by what they are for."""
    width = max(len(name) for lines in TASKS.values() for name in lines)
    text = []
    for task, lines in TASKS.items():
        text.append(f"{task}:")
        for name, said in lines.items():
            text.append(f"  {name:<{width}}  {said or modules[name].__doc__.splitlines()[0]}")
        text.append("")
    text.append(f"{prog} COMMAND --help says more; those of fairseq's are commands of their own.")
    return "\n".join(text)


def _check(args, command) -> None:
    if args.user_dir and not os.path.isdir(args.user_dir):
        raise FileNotFoundError(f"--user-dir {args.user_dir} is not a folder")
    if hasattr(command, "check"):
        command.check(args)


def _register(args) -> None:
    """Makes fairseq know of this package, and of the user's.

    Raises:
        ValueError: fairseq cannot be imported
    """
    try:
        from fairseq_speedup import plugin  # noqa: F401
    except ImportError as error:
        raise ValueError(error) from error
    from fairseq.utils import import_user_module

    import_user_module(args)
