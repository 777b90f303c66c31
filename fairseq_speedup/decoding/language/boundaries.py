"""Whether labels tell words apart: without a boundary, a post-processing that joins labels makes
one word of each utterance, and an error rate counts utterances."""

from dataclasses import dataclass

from fairseq_speedup.data.manifest import ManifestError, check_post_process
from fairseq_speedup.decoding.language.words import LETTER_BOUNDARY, PIECE_BOUNDARY, boundary_of

# by fairseq's post-processing, what stands between words where it joins labels; others join none
BOUNDARIES = {
    "letter": LETTER_BOUNDARY,
    "sentencepiece": PIECE_BOUNDARY,
    "wordpiece": "_",
    "_EOW": "_EOW",
}

# by what boundary_of finds
POST_PROCESSES = {PIECE_BOUNDARY: "sentencepiece", LETTER_BOUNDARY: "letter", None: "none"}


class NoWordsError(ManifestError):
    """Labels without a boundary between words, where words are needed."""


@dataclass(frozen=True)
class LabelWords:
    """What the lines of a label file tell of words.

    path: of the file
    most_labels: of one line
    most_words: of one line, by post-processing; only of those whose boundary is there
    boundary: see :func:`~fairseq_speedup.decoding.language.words.boundary_of`
    """

    path: str
    most_labels: int
    most_words: dict[str, int]
    boundary: str | None

    @classmethod
    def of(cls, path: str, lines: list[list[str]]) -> "LabelWords":
        symbols = set().union(*lines)
        most_words = {
            name: max(len("".join(line).replace(boundary, " ").split()) for line in lines)
            for name, boundary in BOUNDARIES.items()
            if any(boundary in symbol for symbol in symbols)
        }
        return cls(path, max(map(len, lines), default=0), most_words, boundary_of(symbols))

    @property
    def post_process(self) -> str:
        """The one that fits these labels."""
        return POST_PROCESSES[self.boundary]

    def fault(self, post_process: str | None, joins: str) -> str | None:
        """What is wrong where labels are joined without a boundary, in words; None where they are
        not.

        Args:
            post_process: fairseq's
            joins: what joins the labels, for the message
        """
        if post_process not in BOUNDARIES or post_process in self.most_words:
            return None
        if self.most_labels < 2:
            return None
        return (
            f"{self.path}: no line has the word boundary {BOUNDARIES[post_process]!r}, so that "
            f"{joins} makes one word of each utterance"
        )

    def check(self, post_process: str | None, joins: str, remedy: str) -> None:
        """
        Raises:
            NoWordsError: with :meth:`fault`
        """
        fault = self.fault(post_process, joins)
        if fault:
            raise NoWordsError(f"{fault}; {remedy}")

    def note(self, post_process: str | None) -> str | None:
        """What may be wrong: each line is one word of several labels, as where a language without
        blanks between words got a boundary at the end of each line."""
        most_words = self.most_words.get(post_process) if post_process else None
        if most_words != 1 or self.most_labels < 3:  # with the boundary
            return None
        return (
            f"each line of {self.path} is one word as its labels tell: if these are sentences, the "
            "WER counts whole utterances"
        )

    def chosen(self, post_process: str | None, labels: str) -> str:
        """The one that is given, checked, or the one that fits these labels.

        Args:
            labels: their name, as in task.labels
        Raises:
            ManifestError: it does not fit
        """
        if post_process is None:
            self.tell()
            return self.post_process
        check_post_process(labels, post_process)
        self.check(
            post_process,
            f"--post-process {post_process}",
            "leave it out, or use --post-process none, which counts labels",
        )
        return post_process

    def tell(self) -> None:
        """Prints what errors are counted in, where it is not words, or may not be."""
        note = self.note(self.post_process)
        if self.post_process == "none":
            print(
                f"{self.path}: no line has a boundary between words: errors are counted in labels, "
                "as with --post-process none"
            )
        elif note:
            print(f"note: {note}")
