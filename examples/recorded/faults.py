"""What is wrong with a corpus: gathered over all of it, then said at once."""

NAMED = 3  # of each kind


class Faults:
    """Each kind with what there is of it, and what to do."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[str]] = {}

    def add(self, kind: str, remedy: str, what: str) -> None:
        """
        Args:
            kind: such as "audio files are not there"
            remedy: what to do about all of that kind, a sentence
            what: the file, line or utterance
        """
        self.found.setdefault((kind, remedy), []).append(what)

    def told(self) -> str:
        """A line for each kind: how many, which, and the remedy."""
        lines = []
        for (kind, remedy), whats in self.found.items():
            more = f"; and {len(whats) - NAMED} more" if len(whats) > NAMED else ""
            lines.append(f"{len(whats)} {kind}: {'; '.join(whats[:NAMED])}{more}. {remedy}")
        return "\n".join(lines)
