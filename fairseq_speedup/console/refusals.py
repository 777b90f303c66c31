"""How fairseq's commands end where this package refuses something: with the message, and not with
the way that fairseq and Hydra took there."""

import dis
import os
import sys
import traceback

FULL = "HYDRA_FULL_ERROR"  # Hydra's own: 1 for the whole traceback
PACKAGE = __name__.partition(".")[0]


def shorten() -> None:
    """Call when the plugin is imported: in a command of fairseq's, and where nobody has asked for
    all, what this package refuses is told as its commands tell it. Other errors are as before."""
    if not _is_command(sys.argv[0]) or os.environ.get(FULL) == "1":
        return
    if sys.excepthook is not sys.__excepthook__:  # somebody else's
        return
    sys.excepthook = _tell
    os.environ[FULL] = "1"  # Hydra would print by itself, and leave no error to the hook


def is_refusal(error: BaseException) -> bool:
    """Whether an error is an answer of this package to what it was given: one of its own kinds, or
    a ValueError or OSError out of a ``raise`` in it, not out of what it called."""
    if _is_ours(type(error).__module__):
        return True
    if error.__traceback__ is None or not isinstance(error, ValueError | OSError):
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code.co_code
    raised = dis.opname[code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and _is_ours(last.tb_frame.f_globals.get("__name__", ""))


def message_of(error: BaseException) -> str:
    """What an error says, without the way to it in a process that loads data, which torch puts
    before what was said there."""
    message = str(error)
    if message.startswith("Caught ") and "\nOriginal Traceback " in message:
        kind = type(error)
        return message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2].rstrip()
    return message


def reason(error: BaseException, whole: bool = False, most: int | None = None) -> str:
    """What an error says: its first line, or all of them in one; its kind where it says nothing.

    Args:
        most: characters; what is longer ends after a word, with an ellipsis
    """
    lines = [" ".join(line.split()) for line in message_of(error).splitlines() if line.strip()]
    said = " ".join(lines if whole else lines[:1]) or type(error).__name__
    return said if most is None else within(said, most)


def within(text: str, most: int) -> str:
    """A line of at most so many characters; what is longer ends after a word, with an ellipsis."""
    if len(text) <= most:
        return text
    end = text.rfind(" ", most // 2, most - 3)
    return text[: end if end > 0 else most - 4].rstrip(" .,:;") + " ..."


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def _is_command(program: str) -> bool:
    """``fairseq-generate`` and so on, or ``python -m fairseq_cli.generate``."""
    folder, name = os.path.split(program)
    return name.startswith("fairseq-") or os.path.basename(folder) == "fairseq_cli"


def _tell(kind, error, found) -> None:
    if is_refusal(error):
        told = "".join(traceback.format_exception_only(error))
        sys.stderr.write(told.replace(str(error), message_of(error)))
    elif kind.__module__ == "hydra.errors":  # of a config, in words
        sys.stderr.write(f"{error}\n")
    elif isinstance(error, Exception) and (below := _below_hydra(found)) is not None:
        traceback.print_exception(kind, error, below)
        sys.stderr.write(f"\nSet the environment variable {FULL}=1 for a complete stack trace.\n")
    else:
        sys.__excepthook__(kind, error, found)


def _below_hydra(found):
    """What of a traceback Hydra itself would print; None where it runs nothing."""
    while found is not None and found.tb_frame.f_code.co_name != "run_job":
        found = found.tb_next
    return found and found.tb_next
