"""Manifests and letters, in fairseq's form."""

from collections import Counter
from pathlib import Path

from fairseq_speedup.files import written_whole


def letters(sentence: str) -> str:
    """``ab c`` -> ``A B | C |``, as fairseq writes letters."""
    return " ".join(sentence.upper().replace(" ", "|")) + " |"


def write_dictionary(folder: Path, sentences: list[str], symbols: str | None = None) -> None:
    """``dict.ltr.txt`` with every letter of the sentences and how often it is there, or with
    ``symbols`` in their order."""
    counts = Counter(symbol for each in sentences for symbol in letters(each).split())
    listed = symbols or ["|", *sorted(set(counts) - {"|"})]
    write_lines(folder / "dict.ltr.txt", [f"{symbol} {counts[symbol]}" for symbol in listed])


def write_manifest(folder: Path, root: Path, split: str, rows: list[tuple[str, int, str]]) -> None:
    """``split``'s .wrd, .ltr and .tsv in ``folder``; a row has an audio file's path below ``root``,
    its number of samples and its sentence."""
    sentences = [sentence for _, _, sentence in rows]
    write_lines(folder / f"{split}.wrd", [sentence.upper() for sentence in sentences])
    write_lines(folder / f"{split}.ltr", [letters(sentence) for sentence in sentences])
    lines = [str(root), *(f"{name}\t{num_samples}" for name, num_samples, _ in rows)]
    write_lines(folder / f"{split}.tsv", lines)


def write_lines(path: Path, lines: list[str]) -> None:
    """The whole file or none."""
    with written_whole(str(path)) as part:
        Path(part).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
