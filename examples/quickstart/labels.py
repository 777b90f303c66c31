"""Letters as labels, in fairseq's form."""

from pathlib import Path


def letters(sentence: str) -> str:
    """``ab c`` -> ``A B | C |``, as fairseq writes letters."""
    return " ".join(sentence.upper().replace(" ", "|")) + " |"


def write_dictionary(folder: Path, sentences: list[str]) -> None:
    """``dict.ltr.txt`` with every letter of the sentences."""
    symbols = sorted({symbol for each in sentences for symbol in letters(each).split()} - {"|"})
    (folder / "dict.ltr.txt").write_text("".join(f"{s} 1\n" for s in ["|", *symbols]))
