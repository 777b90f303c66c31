"""fairseq's manifests: ``{split}.tsv`` (root, then path and samples) and ``{split}.{labels}``."""

import codecs
import os
from dataclasses import dataclass

from fairseq_speedup.console.relative_paths import looked_for
from fairseq_speedup.data.sound_files import split_row

TEXT = "utf-8-sig"  # UTF-8, whose byte order mark, if it has one, is no character of the text


class ManifestError(ValueError):
    """A manifest or label file that cannot be used."""


@dataclass
class Manifest:
    """The rows of a manifest: paths relative to ``root`` and lengths in samples."""

    path: str
    root: str
    files: list[str]
    num_samples: list[int]


def begins_with_mark(path: str) -> bool:
    """Whether a file has a byte order mark, for programs that do not read around it."""
    with open(path, "rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def read_lines(path: str) -> list[str]:
    """The lines of a text file, without their ends; a ManifestError where it is no UTF-8 text."""
    try:
        with open(path, encoding=TEXT) as file:
            lines = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    return lines[:-1] if lines[-1] == "" else lines


def read_manifest(path: str) -> Manifest:
    """Reads and checks a manifest.

    Raises:
        FileNotFoundError: the manifest, its root folder or its first file does not exist
        ManifestError: no rows, or a row that is not ``path<TAB>samples``
    """
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        splits = sorted(f[:-4] for f in _files_in(folder) if f.endswith(".tsv"))
        found = ", ".join(splits) if splits else "none"
        raise FileNotFoundError(
            f"manifest {path} does not exist; splits in {folder}: {found}{looked_for(path)}"
        )
    files, num_samples = [], []
    lines = read_lines(path)
    root = lines[0].strip() if lines else ""
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != 2 or not cells[1].strip().isdigit():
            raise ManifestError(
                f"{path}, line {number}: expected 'path<TAB>number of samples', found {line!r}"
            )
        files.append(cells[0])
        num_samples.append(int(cells[1]))
    if not files:
        raise ManifestError(
            f"manifest {path} has no utterances; its first line is the root folder, every other "
            "line 'path<TAB>number of samples'"
        )
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"{path}, line 1: the root folder {root!r} does not exist{looked_for(root)}"
        )
    first, _ = split_row(os.path.join(root, files[0]))
    if not os.path.exists(first):
        raise FileNotFoundError(f"{path}, line 2: the audio file {first} does not exist")
    return Manifest(path, root, files, num_samples)


def read_labels(path: str, manifest: Manifest, remedy: str = "") -> list[list[str]]:
    """Reads ``{split}.{labels}``: one line of symbols for each utterance of the manifest.

    Args:
        remedy: said where there is no such file
    Raises:
        FileNotFoundError: no such file
        ManifestError: another number of lines than the manifest has utterances
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"label file {path} does not exist (task.labels={path.rsplit('.', 1)[-1]}){remedy}"
            f"{looked_for(path)}"
        )
    labels = [line.split() for line in read_lines(path)]
    if len(labels) != len(manifest.files):
        raise ManifestError(
            f"{path} has {len(labels)} lines of labels but {manifest.path} has "
            f"{len(manifest.files)} utterances"
        )
    return labels


def infer_labels(folder: str, option: str = "task.labels") -> str:
    """The label set of a data folder that has one ``dict.{labels}.txt``.

    Args:
        option: that would say which
    Raises:
        FileNotFoundError, ManifestError: no folder, or not one dictionary
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"data folder {folder} does not exist or is not a folder{looked_for(folder)}"
        )
    names = [f for f in _files_in(folder) if f.startswith("dict.") and f.endswith(".txt")]
    found = sorted(name[len("dict.") : -len(".txt")] for name in names)
    if len(found) != 1:
        listed = f"several: {', '.join(found)}" if found else "none"
        raise ManifestError(
            f"{option} is not set, and of dictionaries dict.LABELS.txt {folder} has {listed}"
        )
    return found[0]


def check_post_process(
    labels: str | None, post_process: str | None, option: str = "--post-process "
) -> None:
    """Raises ManifestError where sentencepiece labels would be put together into words as if they
    were something else, which gives a wrong WER."""
    if labels == "spm" and post_process != "sentencepiece":
        raise ManifestError(
            f"{option}{post_process} does not fit the labels spm: use {option}sentencepiece"
        )


def _files_in(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []
