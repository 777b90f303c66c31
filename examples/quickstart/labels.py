"""Manifests and letters, in fairseq's form."""

from pathlib import Path


def letters(sentence: str) -> str:
    """``ab c`` -> ``A B | C |``, as fairseq writes letters."""
    return " ".join(sentence.upper().replace(" ", "|")) + " |"


def write_dictionary(folder: Path, sentences: list[str]) -> None:
    """``dict.ltr.txt`` with every letter of the sentences."""
    symbols = sorted({symbol for each in sentences for symbol in letters(each).split()} - {"|"})
    (folder / "dict.ltr.txt").write_text("".join(f"{s} 1\n" for s in ["|", *symbols]))


def write_manifest(folder: Path, root: Path, split: str, rows: list[tuple[str, int, str]]) -> None:
    """``split``'s .tsv, .wrd and .ltr in ``folder``; a row has an audio file's path below ``root``,
    its number of samples and its sentence."""
    lines = [str(root), *(f"{name}\t{num_samples}" for name, num_samples, _ in rows)]
    (folder / f"{split}.tsv").write_text("".join(f"{line}\n" for line in lines))
    sentences = [sentence for _, _, sentence in rows]
    (folder / f"{split}.wrd").write_text("".join(f"{s.upper()}\n" for s in sentences))
    (folder / f"{split}.ltr").write_text("".join(f"{letters(s)}\n" for s in sentences))
