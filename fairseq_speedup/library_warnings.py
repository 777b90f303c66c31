"""Warnings that libraries give about themselves, and that no user of a command can heed."""

import sys
import warnings

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
