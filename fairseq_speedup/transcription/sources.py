"""What recording each text in a folder is of, so that none is taken for another one's."""

import contextlib
import json
import os

from fairseq_speedup.data.find_recordings import STDIN

FILE = ".transcribed.jsonl"


class Sources:
    """Absolute paths of recordings by the names of their texts, in a file of a line each.

    Args:
        folder: of the texts
    """

    def __init__(self, folder: str):
        self.path = os.path.join(folder, FILE)
        self.found: dict[str, str] = {}

    def read(self) -> None:
        """A line that is not whole is of a run that was cut off, before it wrote the text."""
        with (
            contextlib.suppress(FileNotFoundError),
            open(self.path, encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    source = json.loads(line)
                    self.found[str(source["name"])] = str(source["audio"])

    def of(self, name: str) -> str | None:
        return self.found.get(name)

    def add(self, name: str, recording: str) -> None:
        """Before the text is written."""
        source = absolute(recording)
        if self.of(name) == source:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            # on a line of its own, whatever the one before was cut off in
            file.write("\n" + json.dumps({"name": name, "audio": source}))
        self.found[name] = source

    def forget(self) -> None:
        self.found = {}
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)


def absolute(path: str) -> str:
    return path if path == STDIN else os.path.abspath(path)
