"""Audio files of any format, rate, channels and length, as a model takes them."""

import contextlib
import os
import re
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

from fairseq_speedup.data.find_recordings import STDIN
from fairseq_speedup.data.sound_files import why_unreadable

BLOCK = 1 << 18  # samples read at once
# in libsndfile's log of WAV, AIFF and AU: bytes of audio that the header tells, and that follow
SIZES = re.compile(r"(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)")
STREAMED_SIZE = 0x7FFFF000  # from which on a header is of a stream whose length was not known
EPS = 1e-5  # of fairseq's normalisation, PyTorch's layer norm


class RecordingError(ValueError):
    """A file that cannot be used; the message names it."""


@dataclass
class Recording:
    """
    path: of the file
    waveform: (S,), in a temporary file that the system brings into memory as it is read
    changes: what was done to it for the model's sake, or is missing of it, in words
    """

    path: str
    waveform: torch.Tensor
    changes: list[str]


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
            changes = _changes(file, sample_rate)
            statistics = _Statistics()
            for block in _resampled(file, sample_rate):
                statistics.add(block)
                kept.write(block.tobytes())
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
    return Recording(path, torch.from_numpy(samples), changes)


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
    size = SIZES.search(file.extra_info)
    if size and int(size[1]) < STREAMED_SIZE:
        changes.append(f"its end is missing: {size[2]} of {size[1]} bytes of audio are there")
    if file.channels > 1:
        changes.append(f"its {file.channels} channels are averaged")
    if file.samplerate != sample_rate:
        changes.append(f"resampled from {file.samplerate} to {sample_rate} Hz")
    return changes


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Blocks (S, channels) to the end of the file, of which soundfile's own know nothing where a
    format cannot be sought in, such as GSM 6.10."""
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        yield block


def _resampled(file: soundfile.SoundFile, sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks (S,) of one channel at the rate that is asked for."""
    mono = (block.mean(axis=1) for block in _blocks(file))
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
            f"{path} is {1000 * statistics.count / sample_rate:.0f} ms long; this model needs "
            f"{1000 * needed_samples / sample_rate:.0f} ms for one frame"
        )
    if not np.isfinite(statistics.squares):
        raise RecordingError(f"{path} holds NaN or infinite samples")
