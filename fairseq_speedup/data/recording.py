"""Audio files of any format, rate, channels and length, as a model takes them."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from fairseq_speedup.data.cut_off import first_bytes, missing_by_header, missing_samples
from fairseq_speedup.data.find_recordings import STDIN
from fairseq_speedup.data.sound_files import why_unreadable

BLOCK = 1 << 18  # samples read at once
EPS = 1e-5  # of fairseq's normalisation, PyTorch's layer norm


class RecordingError(ValueError):
    """A file that cannot be used; the message names it."""


@dataclass
class Recording:
    """
    path: of the file
    waveform: (S,), in a temporary file that the system brings into memory as it is read
    changes: what was done to it for the model's sake, in words
    missing: what it lacks of its end, in words; None where it is not known to lack any
    """

    path: str
    waveform: torch.Tensor
    changes: list[str]
    missing: str | None = None

    @property
    def notes(self) -> list[str]:
        """What is to be said of it."""
        return [f"its end is missing: {self.missing}"] * bool(self.missing) + self.changes


def read_recording(
    path: str, sample_rate: int, normalize: bool, needed_samples: int = 1
) -> Recording:
    """Reads a file block by block: memory does not grow with its length.

    Args:
        path: of the file; ``-`` is standard input
        sample_rate: of the model, in Hz; other rates are resampled (soxr's high quality)
        normalize: to zero mean and unit variance
        needed_samples: fewer are an error
    Raises:
        RecordingError: no such file, a folder, no audio, nothing in it, or NaN
    """
    if path != STDIN and not os.path.exists(path):
        raise RecordingError(f"{path} does not exist")
    if path != STDIN and os.path.isdir(path):
        raise RecordingError(f"{path} is a folder, no audio file")
    named = "standard input" if path == STDIN else path
    try:
        with (
            _source(path) as source,
            soundfile.SoundFile(source) as file,
            tempfile.TemporaryFile() as kept,
        ):
            changes, blocks = _changes(file, sample_rate), _Blocks(file)
            missing = missing_by_header(first_bytes(source), file)
            statistics = _Statistics()
            for block in _resampled(blocks, sample_rate):
                statistics.add(block)
                kept.write(block.tobytes())
            missing = missing or missing_samples(blocks.num_read, file.frames)
            _check(named, statistics, needed_samples, sample_rate)
            kept.flush()
            samples = np.memmap(kept, dtype=np.float32, mode="r+")
    except RecordingError:
        raise
    except Exception as error:  # soundfile's are of any kind
        raise RecordingError(
            f"{named} cannot be read as audio: {why_unreadable(path, error)}"
        ) from None
    if normalize:
        for start in range(0, len(samples), BLOCK):
            samples[start : start + BLOCK] -= statistics.mean
            samples[start : start + BLOCK] /= np.sqrt(statistics.variance + EPS)
    return Recording(path, torch.from_numpy(samples), changes, missing)


@contextlib.contextmanager
def _source(path: str) -> Any:
    """What soundfile opens: of standard input a temporary file, as it must be sought in; else the
    name in bytes, which it does not make of all names."""
    if path != STDIN:
        yield os.fsencode(path)
        return
    with tempfile.TemporaryFile() as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        if not kept.tell():
            raise RecordingError("standard input is empty")
        kept.seek(0)
        yield kept


def duration(path: str) -> float:
    """Seconds, 0 where the file cannot be read; of standard input, which is read once."""
    if path == STDIN:
        return 0.0
    try:
        return soundfile.info(os.fsencode(path)).duration
    except Exception:  # soundfile's are of any kind
        return 0.0


def _changes(file: soundfile.SoundFile, sample_rate: int) -> list[str]:
    changes = []
    if file.channels > 1:
        changes.append(f"its {file.channels} channels are averaged")
    if file.samplerate != sample_rate:
        changes.append(f"resampled from {file.samplerate} to {sample_rate} Hz")
    return changes


class _Blocks:
    """Blocks (S, channels) to the end of the file, of which soundfile's own know nothing where a
    format cannot be sought in, such as GSM 6.10."""

    def __init__(self, file: soundfile.SoundFile):
        self.file = file
        self.num_read = 0  # samples of a channel

    def __iter__(self) -> Iterator[np.ndarray]:
        while len(block := self.file.read(BLOCK, dtype="float32", always_2d=True)):
            self.num_read += len(block)
            yield block


def _resampled(blocks: _Blocks, sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks (S,) of one channel at the rate that is asked for."""
    file = blocks.file
    mono = (block.mean(axis=1) for block in blocks)
    if file.samplerate == sample_rate:
        yield from mono
        return
    stream = soxr.ResampleStream(file.samplerate, sample_rate, num_channels=1)
    for block in mono:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


class _Statistics:
    """Of samples, as they come."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = 0.0

    def add(self, block: np.ndarray) -> None:
        self.count += len(block)
        self.total += block.sum(dtype=np.float64)
        self.squares += np.square(block, dtype=np.float64).sum()

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def variance(self) -> float:
        return max(0.0, self.squares / self.count - self.mean**2)


def _check(path: str, statistics: _Statistics, needed_samples: int, sample_rate: int) -> None:
    if not statistics.count:
        raise RecordingError(f"{path} holds no samples")
    if statistics.count < needed_samples:
        raise RecordingError(
            f"{path} has {statistics.count} samples at {sample_rate} Hz; this model needs "
            f"{needed_samples} for one frame ({1000 * needed_samples / sample_rate:.1f} ms)"
        )
    if not np.isfinite(statistics.squares):
        raise RecordingError(f"{path} holds NaN or infinite samples")
