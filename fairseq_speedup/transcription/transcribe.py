"""Audio files of any format, rate and length, and their transcripts with times."""

import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig

from fairseq_speedup.console import progress
from fairseq_speedup.data.dictionary import dictionary_of
from fairseq_speedup.data.find_recordings import Found
from fairseq_speedup.data.recording import Recording, RecordingError, duration, read_recording
from fairseq_speedup.decoding.generator import NoNumbersError, batch_of
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import (
    DEFAULTS,
    OF_FAIRSEQ,
    DecodingOptions,
    deciding,
    describe,
    read_overrides,
)
from fairseq_speedup.decoding.results.timestamps import word_times
from fairseq_speedup.export.engines import is_exported, open_exported
from fairseq_speedup.files import version
from fairseq_speedup.inference import InferenceConfig
from fairseq_speedup.models.exported_ctc import ExportedCtc, ExportedLengths
from fairseq_speedup.models.lengths import model_lengths
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.tasks.speedup_finetuning import (
    SpeedupFinetuningConfig,
    SpeedupFinetuningTask,
    completed,
)
from fairseq_speedup.transcription.transcript import (
    TEXT,
    NameTooLongError,
    Transcript,
    TranscriptFolder,
)

NOT_HERE = ["_name", "ctm"]
OF_FILES = ["kenlm_model", "lexicon"]  # options
NO_NUMBERS = (
    "the model gives no numbers (NaN): its training diverged, or values are beyond the range of "
    "fp16 (then give --inference bf16 or fp32)"
)
Failed = Callable[[str, Exception], None]  # called with a path and what is wrong with it


def _own_options() -> list:
    own = [*fields(InferenceConfig), *fields(DecodingOptions)]
    return [each for each in own if each.name not in NOT_HERE]


def run(args) -> None:
    folder = None
    if args.output_dir:
        decided_by = _decided_by(args)
        folder = TranscriptFolder(args.output_dir, args.formats, decided_by, args.overwrite)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=TEXT["errors"])
    summary = Summary()
    recordings = []
    for each in args.recordings:
        if folder and not args.overwrite and folder.is_finished(each):
            summary.num_finished += 1
        else:
            recordings.append(each)
    if recordings:
        transcriber = Transcriber(args)
        try:
            _transcribe_all(transcriber, recordings, folder, summary, args)
        finally:
            transcriber.generator.decoder.close()
    print(summary, file=sys.stderr)
    if summary.num_failed:
        raise RecordingError(
            f"{summary.num_failed} of {len(recordings)} files could not be transcribed"
        )


@dataclass
class Summary:
    """Of a run: seconds of audio that were transcribed, and that this took, without the start."""

    num_files: int = 0
    num_failed: int = 0
    num_finished: int = 0  # before
    audio_seconds: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        files = "1 file" if self.num_files == 1 else f"{self.num_files} files"
        parts = [f"transcribed {files}, {self.audio_seconds / 3600:.3f} hours of audio"]
        if self.audio_seconds:
            parts.append(f"real-time factor {self.seconds / self.audio_seconds:.4f}")
        parts.append(f"{self.num_failed} failed")
        if self.num_finished:
            parts.append(f"{self.num_finished} finished before (--overwrite does them again)")
        return ", ".join(parts)


def _transcribe_all(
    transcriber: "Transcriber",
    found: list[Found],
    folder: TranscriptFolder | None,
    summary: Summary,
    args,
) -> None:
    """Writes what is found, into ``folder`` or to standard output, and counts."""
    names = {each.path: each.name for each in found}
    paths = [each.path for each in found]
    total = sum(map(duration, paths))
    with progress.bar(total=total, unit="s", unit_scale=True, delay=0) as bar:

        def advance(num_samples: int) -> None:
            seconds = num_samples / transcriber.task.sample_rate
            if bar.total:  # of files that say too little of themselves it grows
                bar.total = max(bar.total, bar.n + seconds)
            bar.update(seconds)

        transcriber.generator.progress = advance

        def failed(path: str, error: Exception) -> None:
            summary.num_failed += 1
            bar.write(f"error: {error}", file=sys.stderr)
            if args.json:
                bar.write(json.dumps({"audio": path, "error": str(error)}, ensure_ascii=False))

        began = time.perf_counter()
        for recordings in transcriber.batches(paths, args.batch_size, failed):
            for recording in recordings:
                if recording.notes:
                    notes = ", ".join(recording.notes)
                    bar.write(f"note: {recording.path}: {notes}", file=sys.stderr)
            for transcript in transcriber.transcripts(recordings, failed):
                if folder:
                    try:
                        folder.write(names[transcript.path], transcript)
                    except NameTooLongError as error:
                        failed(transcript.path, error)
                        continue
                else:
                    bar.write(transcript.as_json() if args.json else transcript.as_line())
                    sys.stdout.flush()
                summary.num_files += 1
                summary.audio_seconds += transcript.duration
        summary.seconds = time.perf_counter() - began


class Transcriber:
    """A model with its task and the generator that fairseq-generate drives, for audio files.

    Args:
        args: what :func:`add_arguments` takes
    Raises:
        ValueError, OSError: a file or an option that cannot be used
    """

    def __init__(self, args):
        generation = GenerationConfig(**{name: getattr(args, name) for name in OF_FAIRSEQ})
        exported = is_exported(args.path)
        self.model, self.task = (_of_exported if exported else _of_checkpoint)(args)
        self.use_cuda = torch.cuda.is_available() and not args.cpu and not exported
        if self.use_cuda:
            self.model.cuda()
        self.generator = self.task.build_generator([self.model], generation)
        if self.generator.windows is not None:
            self.generator.windows = self.generator.windows.by(args.batch_size)
        self.words = Words.of_dictionary(self.task.target_dictionary)
        self.grid = self.task.lengths.frame_grid()

    def batches(self, paths: list[str], batch_size: int, failed: Failed):
        """Recordings in order, up to ``batch_size`` at once; one that is cut into windows is alone.

        Args:
            failed: called for a file that cannot be used
        """
        batch: list[Recording] = []
        for path in paths:
            try:
                recording = self._recording(path)
            except RecordingError as error:
                failed(path, error)
                continue
            windows = self.generator.windows
            if windows is not None and len(recording.waveform) > windows.size:
                yield from ([batch] if batch else [])
                yield [recording]
                batch = []
                continue
            batch.append(recording)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _recording(self, path: str) -> Recording:
        needed_samples = self.task.lengths.needed_samples()
        return read_recording(path, self.task.sample_rate, self.task.cfg.normalize, needed_samples)

    def transcripts(self, recordings: list[Recording], failed: Failed) -> list[Transcript]:
        """
        Args:
            failed: called for a recording that the model gives no numbers for
        """
        while recordings:
            sample = {
                "id": torch.arange(len(recordings)),
                "net_input": batch_of([recording.waveform for recording in recordings]),
            }
            if self.use_cuda:
                sample = utils.move_to_cuda(sample)
            try:
                nbest = self.generator.generate([self.model], sample)
            except NoNumbersError as error:
                for row in error.rows:
                    path = recordings[row].path
                    failed(path, RecordingError(f"{path}: {NO_NUMBERS}"))
                rest = set(range(len(recordings))).difference(error.rows)
                recordings = [recordings[row] for row in sorted(rest)]
            else:
                return [self._transcript(*each) for each in zip(recordings, nbest, strict=True)]
        return []

    def _transcript(self, recording: Recording, hypotheses: list[dict]) -> Transcript:
        num_samples, rate = len(recording.waveform), self.task.sample_rate
        words = word_times(hypotheses[0], self.words, self.grid, num_samples, rate)
        nbest = [
            {"text": self._text(each)}
            | {name: round(each[name], 4) for name in ("score", "acoustic_score", "lm_score")}
            for each in hypotheses
        ]
        return Transcript(recording.path, num_samples / rate, nbest, words)

    def _text(self, hypothesis: dict) -> str:
        labels = hypothesis["tokens"].tolist()
        return " ".join(self.words.of([self.words.symbols[label] for label in labels]))


def _decided_by(args) -> dict:
    """What the texts depend on."""
    given = {name: getattr(args, name) for name in DEFAULTS if hasattr(args, name)}
    decoding = deciding(describe(DecodingOptions(**given), args))
    files = {name: version(decoding[name]) for name in OF_FILES if name in decoding}
    decided_by = {"path": version(args.path), "inference": args.inference, **decoding, **files}
    if overrides := read_overrides(args.model_overrides):
        decided_by["model_overrides"] = str(overrides)
    return decided_by | ({"data": os.path.abspath(args.data)} if args.data else {})


def _options(args) -> dict:
    return {each.name: getattr(args, each.name) for each in _own_options()}


def _of_checkpoint(args):
    """Its model and task."""
    overrides = read_overrides(args.model_overrides)
    if args.data is not None:
        overrides = {"data": args.data, **overrides}
    with progress.step(f"reading {args.path}"):
        model, cfg, loaded = load_finetuned(args.path, "--path ", overrides)
    task_cfg = completed(cfg.task)
    for name, value in _options(args).items():
        task_cfg[name] = value
    task = _task(task_cfg, loaded.target_dictionary, model_lengths(model))
    model.eval()
    return model, task


def _of_exported(args):
    """Its model and task."""
    if args.data is not None:
        raise ValueError(
            f"--data {args.data} does not change {args.path}, which holds its labels: leave it out"
        )
    if read_overrides(args.model_overrides) or args.inference not in ("auto", "none"):
        raise ValueError(
            f"--model-overrides and --inference do not change {args.path}, which is as it was "
            "exported: leave them out"
        )
    with progress.step(f"reading {args.path}"):
        session = open_exported(args.path, torch.get_num_threads())
    metadata = session.metadata
    task_cfg = SpeedupFinetuningConfig(
        data=os.path.dirname(os.path.abspath(args.path)),
        labels=metadata.labels,
        normalize=metadata.normalize,
        sample_rate=metadata.sample_rate_hz,
        **_options(args),
    )
    dictionary = dictionary_of(metadata.symbols)
    return ExportedCtc(session), _task(task_cfg, dictionary, ExportedLengths(metadata))


def _task(cfg, dictionary: Dictionary, lengths) -> SpeedupFinetuningTask:
    task = SpeedupFinetuningTask.with_dictionary(cfg, dictionary)
    task.lengths = lengths
    return task
