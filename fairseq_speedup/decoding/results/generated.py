"""What fairseq-generate has written: where its files are, and reading its results."""

import os
from dataclasses import dataclass
from typing import Protocol

from fairseq_speedup.data.manifest import read_lines


def generate_path(folder: str, subset: str) -> str:
    """fairseq's own results"""
    return os.path.join(folder, f"generate-{subset}.txt")


def nbest_path(folder: str, subset: str) -> str:
    return os.path.join(folder, f"nbest-{subset}.tsv")


def ctm_path(folder: str, subset: str) -> str:
    return os.path.join(folder, f"generate-{subset}.ctm")


class ResultFile(Protocol):
    """Written beside fairseq's results, batch by batch."""

    path: str

    def add(self, ids: list[int], nbest: list[list[dict]]) -> None:
        """
        Args:
            ids: numbers of the utterances of a batch, as in fairseq's results
            nbest: their hypotheses, best first
        """

    def close(self) -> None:
        """Once everything is decoded."""


@dataclass
class Utterance:
    """lines: all that fairseq-generate wrote about it; reference, hypothesis: as it scored them"""

    lines: list[str]
    reference: str = ""
    hypothesis: str | None = None


def read_generated(path: str) -> tuple[dict[int, Utterance], str]:
    """What fairseq's results hold of each utterance, by number, and their last line."""
    utterances: dict[int, Utterance] = {}
    last_line = ""
    for line in read_lines(path):
        kind, _, rest = line.partition("-")
        number, _, text = rest.partition("\t")
        if kind in ("T", "H", "D", "P", "A") and number.isdigit():
            utterance = utterances.setdefault(int(number), Utterance([]))
            utterance.lines.append(line)
            if kind == "T":
                utterance.reference = text
            elif kind == "D" and utterance.hypothesis is None:  # the best of the n-best list
                utterance.hypothesis = text.partition("\t")[2]
        else:
            last_line = line
    return utterances, last_line
