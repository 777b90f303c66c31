"""What a terminal shows of work that takes its time, and takes away when it is done. Elsewhere
nothing is written, but what a log is to have."""

import contextlib
import os
import sys

from tqdm import tqdm

COLUMNS, ROWS = 80, 24  # of terminals that do not say their size, in which tqdm shows nothing
AFTER_SECONDS = 1  # before which a bar is not worth looking at
INTERVAL_SECONDS = 0.1  # at least, between two drawings of a bar


def bar(items=None, what: str | None = None, **options) -> tqdm:
    """A bar over items, or one that its owner updates.

    Args:
        items: what is gone through, all of them given on
        what: is done with them
        options: of tqdm's
    """
    shown = {
        "leave": False,
        "delay": AFTER_SECONDS,
        "mininterval": INTERVAL_SECONDS,
        "miniters": 0,  # whatever the interval leaves is drawn, as slow as one item may be
        "dynamic_ncols": True,
        **options,
    }
    if _columns() == 0:
        shown |= {"dynamic_ncols": False, "ncols": COLUMNS, "nrows": ROWS}
    return tqdm(items, what, file=sys.stderr, disable=not sys.stderr.isatty(), **shown)


def _columns() -> int | None:
    """That the terminal says it has; None where there is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def step(what: str, to_logs: bool = False):
    """While something is done that has no parts to be counted.

    Args:
        to_logs: whether it is said where there is no terminal too, once
    """
    if to_logs and not sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
    with bar(what=what, bar_format="{desc} ...", delay=0):
        yield
