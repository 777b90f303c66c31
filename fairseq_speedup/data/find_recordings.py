"""Recordings that a command line names: files, folders, globs and standard input."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

STDIN = "-"
# of what libsndfile reads and has a header, in lower case
ENDINGS = (
    *(".aif", ".aifc", ".aiff", ".au", ".avr", ".caf", ".flac", ".htk", ".iff", ".mp3", ".nist"),
    *(".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph"),
    *(".svx", ".voc", ".w64", ".wav", ".wave", ".wve", ".xi"),
)


@dataclass(frozen=True)
class Found:
    """
    path: of the recording; ``-`` for standard input
    name: of what is written for it, without an ending: its path below the folder that all
        recordings have in common
    """

    path: str
    name: str


def find_recordings(given: list[str]) -> list[Found]:
    """
    Args:
        given: files, which need not exist, in order; folders and globs, whose files with an ending
            of :data:`ENDINGS` are taken, sorted; ``-``
    Raises:
        ValueError: a folder or glob without recordings, or a standard input that is none
        OSError: a folder that cannot be read
    """
    if STDIN in given:
        _check_stdin(given)
    paths, roots = [], []
    for each in given:
        if each == STDIN:
            paths.append(each)
        elif os.path.isdir(each):
            paths += _of_folder(each)
            roots.append(each)
        elif glob.has_magic(each) and not os.path.lexists(each):
            paths += _of_glob(each)
            roots.append(_before_magic(each))
        else:
            paths.append(each)
            roots.append(os.path.dirname(each))
    common = os.path.commonpath(list(map(os.path.abspath, roots))) if roots else ""
    return list(map(Found, paths, _names(paths, common)))


def _check_stdin(given: list[str]) -> None:
    if given.count(STDIN) > 1:
        raise ValueError("- is given twice: standard input is one recording")
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("- is audio on standard input, which is a terminal: pipe a file into it")


def _of_folder(folder: str) -> list[str]:
    found = sorted(_walk(folder))
    if not found:
        raise ValueError(f"{folder} and its sub-folders have no audio file: {_valid()}")
    return found


def _of_glob(pattern: str) -> list[str]:
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise ValueError(f"{pattern} matches nothing")
    found = []
    for path in matches:
        if os.path.isdir(path):
            found += sorted(_walk(path))
        elif is_audio(path):
            found.append(path)
    if not found:
        raise ValueError(f"{pattern} matches no audio file, but {matches[0]}: {_valid()}")
    return list(dict.fromkeys(map(os.path.normpath, found)))


def is_audio(path: str) -> bool:
    """Whether a file's name says that libsndfile reads it."""
    return path.lower().endswith(ENDINGS)


def _valid() -> str:
    return f"their names end in {' '.join(ENDINGS)}"


def _walk(folder: str) -> Iterator[str]:
    """Audio files below a folder; hidden ones are left out, links to folders are followed once."""
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for each in files:
            if is_audio(each) and not each.startswith("."):
                yield os.path.join(parent, each)


def _raise(error: OSError) -> None:
    raise error


def _before_magic(pattern: str) -> str:
    """The folder of a glob that holds all it can match."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder


def _names(paths: list[str], common: str) -> list[str]:
    whole = [
        "stdin" if path == STDIN else os.path.relpath(os.path.abspath(path), common)
        for path in paths
    ]
    short = {each: os.path.splitext(each)[0] for each in whole}
    times = Counter(short.values())
    # a.wav beside a.flac keep their endings
    names = {each: name if times[name] == 1 else each for each, name in short.items()}
    if len(set(names.values())) < len(names):  # a.wav beside a.flac and a.wav.flac
        names = {each: each for each in whole}
    return [names[each] for each in whole]
