"""Words with times as subtitles: cues of one or two lines, in SubRip's (SRT) and WebVTT's form.

Limits are those of the usual style guides, such as Netflix's: 42 characters a line, two lines, one
to seven seconds.
"""

import itertools
from dataclasses import dataclass

LINE_CHARACTERS = 42
LONGEST = 7.0  # seconds
SHORTEST = 1.0  # seconds, where the next cue leaves them
PAUSE = 0.7  # seconds between words, which end a cue


@dataclass
class Cue:
    """start, end: in seconds; lines: one or two"""

    start: float
    end: float
    lines: list[str]


def cues_of(words: list, duration: float) -> list[Cue]:
    """
    Args:
        words: of type ``TimedWord``, in order
        duration: of the recording, in seconds
    """
    cues = [Cue(part[0].start, part[-1].end, _lines(part)) for part in _parts(words)]
    starts = [*(cue.start for cue in cues), duration]
    for cue, latest in zip(cues, starts[1:], strict=True):
        if cue.end - cue.start < SHORTEST:
            cue.end = max(cue.end, min(cue.start + SHORTEST, latest))
    return cues


def as_srt(cues: list[Cue]) -> str:
    return "\n".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{_text(cue)}\n"
        for number, cue in enumerate(cues, 1)
    )


def as_vtt(cues: list[Cue]) -> str:
    blocks = [
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{_escaped(_text(cue))}\n"
        for cue in cues
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _parts(words: list) -> list[list]:
    """Words of one cue each. Speech between two pauses that is too much for one is parted where it
    pauses longest, rather in its middle, until it is not."""
    parts, waiting = [], _phrases(words)[::-1]
    while waiting:
        phrase = waiting.pop()
        if len(phrase) == 1 or _fits(phrase):
            parts.append(phrase)
        else:
            middle = _best_parting(phrase)
            waiting += [phrase[middle:], phrase[:middle]]
    return parts


def _phrases(words: list) -> list[list]:
    phrases = [[word] for word in words[:1]]
    for before, word in itertools.pairwise(words):
        if word.start - before.end >= PAUSE:
            phrases.append([])
        phrases[-1].append(word)
    return phrases


def _fits(words: list) -> bool:
    if words[-1].end - words[0].start > LONGEST or len(words) > 2 * LINE_CHARACTERS:
        return False
    return all(len(line) <= LINE_CHARACTERS for line in _lines(words))


def _best_parting(words: list) -> int:
    """Index of the word that begins the second part."""
    ends = list(itertools.accumulate(len(each.word) + 1 for each in words))

    def merit(index: int) -> float:
        pause = (words[index].start - words[index - 1].end) / PAUSE
        return pause - abs(2 * ends[index - 1] / ends[-1] - 1)

    return max(range(1, len(words)), key=merit)


def _lines(words: list) -> list[str]:
    """One line where that is enough, or two as equal as they can be."""
    texts = [each.word for each in words]
    if len(texts) == 1 or len(" ".join(texts)) <= LINE_CHARACTERS:
        return [" ".join(texts)]
    pairs = [(" ".join(texts[:n]), " ".join(texts[n:])) for n in range(1, len(texts))]
    return list(min(pairs, key=lambda pair: max(map(len, pair))))


def _text(cue: Cue) -> str:
    return "\n".join(cue.lines)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(seconds: float, point: str) -> str:
    """hours:minutes:seconds,milliseconds"""
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"
