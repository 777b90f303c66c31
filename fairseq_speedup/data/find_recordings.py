"""Recordings that a command line names: files, folders, globs and standard input."""

import glob
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

STDIN = "-"
# of what libsndfile reads and has a header, in lower case
ENDINGS = (
    *(".aif", ".aifc", ".aiff", ".au", ".avr", ".caf", ".flac", ".htk", ".iff", ".mp3", ".nist"),
    *(".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph"),
    *(".svx", ".voc", ".w64", ".wav", ".wave", ".wve", ".xi"),
)
# of audio that it does not read, in lower case
UNREAD = (
    *(".3gp", ".aac", ".ac3", ".amr", ".ape", ".dts", ".m4a", ".m4b", ".mka", ".mkv", ".mov"),
    *(".mp4", ".mpc", ".ra", ".shn", ".spx", ".tta", ".webm", ".wma", ".wv"),
)
MOST_NAMED = 3  # files in one note


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
    """Says on standard error what is taken once though it is given twice, and which audio in
    folders is passed over.

    Args:
        given: files, which need not exist, in order; folders and globs, whose files with an ending
            of :data:`ENDINGS` are taken, sorted; ``-``
    Raises:
        ValueError: a folder or glob without recordings, or a standard input that is none; a glob
            beside others that matches nothing is given back, as a file that does not exist
        OSError: a folder that cannot be read
    """
    if STDIN in given:
        _check_stdin(given)
    paths: list[str] = []
    roots: list[str] = []
    unread: list[str] = []
    for each in given:
        if each == STDIN:
            paths.append(each)
        elif os.path.isdir(each):
            paths += _of_folder(each, unread)
            roots.append(each)
        elif glob.has_magic(each) and not os.path.lexists(each):
            paths += _of_glob(each, unread, alone=len(given) == 1)
            roots.append(_before_magic(each))
        else:
            paths.append(each)
            roots.append(os.path.dirname(each))
    if unread:
        _say(unread, "passed over, as libsndfile cannot read it", f"; {how_to_read(unread[0])}")
    once = {path if path == STDIN else os.path.abspath(path): path for path in reversed(paths)}
    times = Counter(map(os.path.abspath, paths))
    again = [path for whole, path in once.items() if times[whole] > 1]
    if again:
        _say(again[::-1], "given more than once, taken once")
    paths = list(once.values())[::-1]
    common = os.path.commonpath(list(map(os.path.abspath, roots))) if roots else ""
    return list(map(Found, paths, _names(paths, common)))


def _say(paths: list[str], what: str, more: str = "") -> None:
    paths = list(dict.fromkeys(paths))
    named = ", ".join(paths[:MOST_NAMED]) + (", ..." if len(paths) > MOST_NAMED else "")
    print(f"note: {what}: {named} ({len(paths)} in all){more}", file=sys.stderr)


def _check_stdin(given: list[str]) -> None:
    if given.count(STDIN) > 1:
        raise ValueError("- is given twice: standard input is one recording")
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("- is audio on standard input, which is a terminal: pipe a file into it")


def _of_folder(folder: str, unread: list[str]) -> list[str]:
    """Its recordings; audio that is none goes to ``unread``."""
    found, others = _parted(sorted(_walk(folder)))
    if not found:
        raise ValueError(f"{folder} and its sub-folders have no audio file{_instead(others)}")
    unread += others
    return found


def _of_glob(pattern: str, unread: list[str], alone: bool) -> list[str]:
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches and not alone:
        return [pattern]  # a file that does not exist: the others go on
    if not matches:
        raise ValueError(f"{pattern} matches nothing")
    paths = []
    for path in matches:
        paths += sorted(_walk(path)) if os.path.isdir(path) else [path]
    found, others = _parted(dict.fromkeys(map(os.path.normpath, paths)))
    if not found:
        but = "" if others else f", but {matches[0]}"
        raise ValueError(f"{pattern} matches no audio file{but}{_instead(others)}")
    unread += others
    return found


def _parted(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Files whose names say that libsndfile reads them, and those that are audio otherwise."""
    paths = list(paths)
    found = [path for path in paths if path.lower().endswith(ENDINGS)]
    return found, [path for path in paths if path.lower().endswith(UNREAD)]


def how_to_read(path: str) -> str:
    """How audio of :data:`UNREAD` is made into a file that libsndfile reads."""
    output = os.path.basename(os.path.splitext(path)[0]) + ".flac"
    return f"{shlex.join(['ffmpeg', '-i', path, output])} makes one that can be read"


def _instead(unread: list[str]) -> str:
    """What is there in place of recordings, and what their names would end in."""
    if not unread:
        return f": their names end in {' '.join(ENDINGS)}"
    return f" that libsndfile reads, but others, such as {unread[0]}; {how_to_read(unread[0])}"


def _walk(folder: str) -> Iterator[str]:
    """Files below a folder; hidden ones are left out, links to folders are followed once."""
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for each in files:
            if not each.startswith("."):
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
