"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[str]:
    """Gives a path to write to, in the same folder, which becomes ``path`` when the block ends.
    Where it raises, what it wrote is removed and ``path`` is as it was."""
    part = f"{path}.part"
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
        raise
