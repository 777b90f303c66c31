"""What is found in a recording, and the files that say it."""

import errno
import json
import math
import os
import time
from dataclasses import dataclass
from typing import Any

from fairseq_speedup.console.earlier_run import first_difference
from fairseq_speedup.data.find_recordings import STDIN, Found
from fairseq_speedup.decoding.results.files import ctm_rows
from fairseq_speedup.decoding.results.timestamps import TimedWord
from fairseq_speedup.files import written_whole
from fairseq_speedup.transcription.sources import Sources, absolute
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
        """A score that is not finite is null."""
        nbest = [{name: _or_none(value) for name, value in each.items()} for each in self.nbest]
        fields = {"audio": self.path, "duration": round(self.duration, 3), **nbest[0]}
        fields["words"] = [
            {"word": each.word, "start": round(each.start, 3), "end": round(each.end, 3)}
            for each in self.words
        ]
        if len(nbest) > 1:
            fields["nbest"] = nbest
        return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def _or_none(value: Any) -> Any:
    """A value without those numbers that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


RECORD = ".transcribed.json"  # in a folder of texts, what decided them
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
    """Where each recording has a file of each format, named as the recording is. What decided the
    texts, and what each is of, is in files beside them, from the first one that is written on.

    Args:
        folder: made where it does not exist
        formats: of :data:`FORMATS`
        decided_by: what decides the texts, by name: text and numbers
        overwrite: texts that are there are to be replaced
    Raises:
        ValueError: the texts that are there were decided by something else
        OSError: a folder that cannot be made
    """

    def __init__(self, folder: str, formats: list[str], decided_by: dict, overwrite: bool):
        self.folder = folder
        self.formats = formats
        self.record = os.path.join(folder, RECORD)
        self.sources = Sources(folder)
        self.has_sources = True  # texts of an earlier version have none
        self.decided_by = decided_by
        self.since = 0.0  # when the first of these texts was written; earlier ones are of others
        self.is_recorded = os.path.exists(self.record)
        os.makedirs(folder, exist_ok=True)
        if self.is_recorded:
            self._compare(overwrite)

    def _compare(self, overwrite: bool) -> None:
        try:
            with open(self.record, encoding="utf-8") as file:
                recorded = json.load(file)
            found, self.since = dict(recorded["decided_by"]), float(recorded["since"])
            self.has_sources = recorded.get("sources") is True
        except (ValueError, TypeError, KeyError, RecursionError):
            found = {}  # nobody knows
        difference = first_difference(found, self.decided_by)
        if difference is None:
            self.sources.read()
            return
        if not overwrite:
            raise ValueError(
                f"--output-dir {self.folder} has texts of another run: {difference}; give "
                "--overwrite to replace them, or another folder"
            )
        self.since, self.is_recorded, self.has_sources = time.time(), False, True

    def _write_record(self) -> None:
        record = {"since": self.since, "decided_by": self.decided_by, "sources": self.has_sources}
        self.sources.forget()  # those of texts that are replaced
        with written_whole(self.record) as part, open(part, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        self.is_recorded = True

    def path(self, name: str, form: str) -> str:
        return os.path.join(self.folder, name + FORMATS[form][0])

    def is_finished(self, recording: Found) -> bool:
        """Whether all files are there, and none is older than the recording or of another run.

        Raises:
            ValueError: a file of that name is of another recording, or no run here wrote it
        """
        files = [self.path(recording.name, form) for form in self.formats]
        written = {file: os.path.getmtime(file) for file in files if os.path.exists(file)}
        for file, when in written.items():
            if when >= self.since:  # earlier ones are to be replaced
                self._check_source(file, recording)
        if recording.path == STDIN or len(written) < len(files):
            return False
        try:
            recorded = os.path.getmtime(recording.path)
        except OSError:  # which is told when it is read
            return False
        return min(written.values()) >= max(recorded, self.since)

    def _check_source(self, file: str, recording: Found) -> None:
        source = self.sources.of(recording.name)
        if source == absolute(recording.path) or (source is None and not self.has_sources):
            return
        of = "was written by no run that is recorded there" if source is None else f"is of {source}"
        raise ValueError(
            f"{file} {of}, and {recording.path} would have that name: give another --output-dir, "
            "or --overwrite to replace it"
        )

    def write(self, name: str, transcript: Transcript) -> None:
        """
        Raises:
            NameTooLongError: of this recording alone
            OSError: naming the file; what is finished stays
        """
        for form in self.formats:
            path = self.path(name, form)
            try:
                if not self.is_recorded:
                    self._write_record()
                self.sources.add(name, transcript.path)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with written_whole(path) as part, open(part, "w", **TEXT) as file:
                    file.write(FORMATS[form][1](transcript, name))
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise NameTooLongError(f"{path}: a name too long for a file") from None
                raise OSError(
                    f"{path} cannot be written: {error.strerror}; what is finished stays, and the "
                    "same command goes on from there"
                ) from error


class NameTooLongError(ValueError):
    """A recording whose name leaves no room for the ending of a format."""
