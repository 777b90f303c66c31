"""What is found in a recording, and the files that say it."""

import json
import os
from dataclasses import dataclass
from typing import Any

from fairseq_speedup.data.find_recordings import STDIN, Found
from fairseq_speedup.decoding.results import ctm_rows
from fairseq_speedup.decoding.timestamps import TimedWord
from fairseq_speedup.files import written_whole
from fairseq_speedup.transcription.subtitles import as_srt, as_vtt, cues_of


@dataclass
class Transcript:
    """
    path: of the recording
    duration: in seconds
    nbest: hypotheses, best first, each with ``text``, ``score``, ``acoustic_score`` and
        ``lm_score`` (nats, but log10 of the language model)
    words: of the best one
    """

    path: str
    duration: float
    nbest: list[dict]
    words: list[TimedWord]

    def as_line(self) -> str:
        return f"{self.path}\t{self.nbest[0]['text']}"

    def as_json(self) -> str:
        fields = {"audio": self.path, "duration": round(self.duration, 3), **self.nbest[0]}
        fields["words"] = [
            {"word": each.word, "start": round(each.start, 3), "end": round(each.end, 3)}
            for each in self.words
        ]
        if len(self.nbest) > 1:
            fields["nbest"] = self.nbest
        return json.dumps(fields, ensure_ascii=False)


TEXT: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "surrogateescape",
}  # names of files may be no UTF-8
# by the name of a format: the ending of its files; what is in them, of a transcript and a name
FORMATS = {
    "text": (".txt", lambda transcript, name: transcript.nbest[0]["text"] + "\n"),
    "json": (".json", lambda transcript, name: transcript.as_json() + "\n"),
    "srt": (".srt", lambda transcript, name: as_srt(_cues(transcript))),
    "vtt": (".vtt", lambda transcript, name: as_vtt(_cues(transcript))),
    "ctm": (".ctm", lambda transcript, name: "".join(_ctm_rows(transcript, name))),
}


def _cues(transcript: Transcript) -> list:
    return cues_of(transcript.words, transcript.duration)


def _ctm_rows(transcript: Transcript, name: str) -> list[str]:
    return ctm_rows("_".join(name.split()), transcript.words)


class TranscriptFolder:
    """Where each recording has a file of each format, named as the recording is.

    Args:
        folder: made where it does not exist
        formats: of :data:`FORMATS`
    Raises:
        OSError: a folder that cannot be made
    """

    def __init__(self, folder: str, formats: list[str]):
        self.folder = folder
        self.formats = formats
        os.makedirs(folder, exist_ok=True)

    def path(self, name: str, form: str) -> str:
        return os.path.join(self.folder, name + FORMATS[form][0])

    def is_finished(self, recording: Found) -> bool:
        """Whether all files are there, and none is older than the recording."""
        if recording.path == STDIN:
            return False
        try:
            recorded = os.path.getmtime(recording.path)
            files = [self.path(recording.name, form) for form in self.formats]
            return all(os.path.getmtime(file) >= recorded for file in files)
        except OSError:  # none there
            return False

    def write(self, name: str, transcript: Transcript) -> None:
        """
        Raises:
            OSError: naming the file; what is finished stays
        """
        for form in self.formats:
            path = self.path(name, form)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with written_whole(path) as part, open(part, "w", **TEXT) as file:
                    file.write(FORMATS[form][1](transcript, name))
            except OSError as error:
                raise OSError(
                    f"{path} cannot be written: {error.strerror}; what is finished stays, and the "
                    "same command goes on from there"
                ) from error
