"""What libraries say about themselves, and no user of a command can heed."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

STANDARD_ERROR = 2  # as the system counts
# how each begins, and its kind
OF_LIBRARIES = [
    # fairseq's positional convolution is of the older kind
    (r".*torch\.nn\.utils\.weight_norm.* is deprecated", FutureWarning),
    # of old and odd checkpoints, which are read or refused
    (r"Detected pickle protocol \d+ in the checkpoint", UserWarning),
    # its iterators ask for it on CPUs too
    (r".*pin_memory.* no accelerator is found", UserWarning),
]


def leave_out() -> None:
    """Leaves out those of :data:`OF_LIBRARIES`, unless Python was told which to show."""
    if not sys.warnoptions:
        for message, category in OF_LIBRARIES:
            warnings.filterwarnings("ignore", message=message, category=category)


@contextlib.contextmanager
def native_code_on_terminals_alone() -> Iterator[None]:
    """Leaves out what compiled code writes to standard error, past ``sys.stderr``, unless that is a
    terminal: its progress is of use there, and of none in a log."""
    if os.isatty(STANDARD_ERROR):
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(STANDARD_ERROR), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STANDARD_ERROR)
        yield
    finally:
        os.dup2(kept, STANDARD_ERROR)
        os.close(kept)
        os.close(nowhere)
