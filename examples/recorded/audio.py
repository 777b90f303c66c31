"""Recordings as fairseq's datasets take them: 16 kHz, one channel, with a header. Others are
converted."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from fairseq_speedup.data.recording import RecordingError, read_recording
from fairseq_speedup.data.sound_files import HEADERLESS
from fairseq_speedup.files import written_whole

SAMPLE_RATE = 16000
NEEDED_SAMPLES = 400  # of one frame of the CNN


@dataclass(frozen=True)
class Audio:
    """
    path: of what can be read as it is, or of what was converted
    num_samples: at 16 kHz
    changes: what the conversion did, in words
    """

    path: Path
    num_samples: int
    changes: tuple[str, ...]


def taken(path: Path, converted: Path) -> Audio:
    """Reads a recording to its end, and writes it as FLAC where fairseq could not read it.

    Args:
        converted: file to write then
    Raises:
        RecordingError: naming the file
    """
    if path.suffix.lower() == HEADERLESS:
        waveform, changes = read_headerless(path)
        if len(waveform) < NEEDED_SAMPLES:
            raise RecordingError(f"{path} has {len(waveform)} samples, too few for a frame")
    else:
        recording = read_recording(str(path), SAMPLE_RATE, False, NEEDED_SAMPLES)
        if recording.missing:
            raise RecordingError(f"{path}: its end is missing: {recording.missing}")
        waveform, changes = recording.waveform.numpy(), tuple(recording.changes)
    if not changes:
        return Audio(path, len(waveform), ())
    converted.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(str(converted)) as part:
        soundfile.write(part, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return Audio(converted, len(waveform), changes)


def read_headerless(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """
    Of 16-bit samples at 16 kHz, in the byte order in which they change less from one to the next:
    in the other they are noise.

    Returns:
        waveform (S,), float32; the byte order, in words
    Raises:
        RecordingError: an odd number of bytes
    """
    data = path.read_bytes()
    if len(data) % 2:
        raise RecordingError(f"{path} has {len(data)} bytes, which are no whole 16-bit samples")
    orders = {name: np.frombuffer(data, code) for name, code in (("little", "<i2"), ("big", ">i2"))}
    name = min(orders, key=lambda each: _roughness(orders[each]))
    return (orders[name] / 32768).astype(np.float32), (f"raw, {name}-endian",)


def _roughness(samples: np.ndarray) -> float:
    return np.square(np.diff(samples.astype(np.float64))).sum()
