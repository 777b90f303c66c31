"""Files that are there whole or not at all, and whether they are still the same."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from datetime import UTC, datetime

_count = itertools.count()


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[str]:
    """Gives a path to write to, in the same folder, which becomes ``path`` when the block ends.
    Where it raises, what it wrote is removed and ``path`` is as it was. Processes that write one
    file have paths of their own: that of the last one stays."""
    # as a name of its own, which fits wherever the file's name does
    part = os.path.join(os.path.dirname(path), f".{os.getpid()}-{next(_count)}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)
        raise


def version(path: str) -> str:
    """What tells a file from another one, and from an earlier one of its name: its absolute path,
    size and time of writing; of a folder, those of the newest file in it."""
    whole = os.path.abspath(path)
    if os.path.isdir(whole):
        files = [each.path for each in os.scandir(whole) if each.is_file()]
        whole = max(files, key=os.path.getmtime, default=whole)
    if not os.path.exists(whole):
        return f"{whole}, which does not exist"
    found = os.stat(whole)
    written = datetime.fromtimestamp(found.st_mtime, UTC).isoformat()
    return f"{whole}, {found.st_size} bytes, written {written}"
