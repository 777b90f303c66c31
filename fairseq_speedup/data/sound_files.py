"""Reading with libsndfile what a path or a manifest's row names, and why that failed."""

import io
import os
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile

from fairseq_speedup.data.find_recordings import UNREAD, how_to_read

ZIP_ROW = re.compile(r"(.+):(\d+):(\d+)")  # of fairseq's manifests: zip, first byte, bytes
PAUSES_SECONDS = (1, 2)  # before reading is tried again, as a network's file system may need
SYSTEM_ERROR = 2  # libsndfile's code where the operating system failed
HEADERLESS = ".raw"


def split_row(row: str) -> tuple[str, tuple[int, int] | None]:
    """The file of a manifest's row, and the first byte and number of bytes where it is in a zip."""
    found = ZIP_ROW.fullmatch(row)
    if found is None:
        return row, None
    file, first, length = found.groups()
    return file, (int(first), int(length))


def read_row(row: str) -> tuple[np.ndarray, int]:
    """
    Args:
        row: whole path of an audio file, or ``zip:first byte:bytes``
    Returns:
        waveform (S,) or (S, channels), float32, and its rate in Hz
    Raises:
        FileNotFoundError, ValueError, or whatever libsndfile does not take
    """
    file, part = split_row(row)
    if not os.path.exists(file):
        raise FileNotFoundError(f"{file} does not exist")
    if part is None:
        return _patiently(lambda: soundfile.read(row, dtype="float32"))
    first, length = part
    data = _patiently(lambda: _bytes_of(file, first, length))
    try:
        return soundfile.read(io.BytesIO(data), dtype="float32")
    except Exception as error:
        raise ValueError(
            f"{length} bytes of {file} from byte {first} on are no audio file ({reason(error)}); "
            "path:offset:length is a file in a zip without compression (zip -0), no part of a "
            "recording"
        ) from None


def _bytes_of(path: str, first: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(first)
        return file.read(length)


def _patiently(read: Callable) -> Any:
    for pause in PAUSES_SECONDS:
        try:
            return read()
        except (OSError, soundfile.LibsndfileError) as error:
            if getattr(error, "code", SYSTEM_ERROR) != SYSTEM_ERROR:
                raise
            time.sleep(pause)
    return read()


def reason(error: Exception) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def why_unreadable(path: str, error: Exception) -> str:
    """As :func:`reason`, of an audio file."""
    if path.lower().endswith(HEADERLESS) and isinstance(error, TypeError):  # soundfile wants a rate
        return (
            "it has no header to tell its sample rate and encoding; write it as WAV, such as by "
            "sox -t raw -r 16000 -e signed -b 16 -c 1 in.raw out.wav"
        )
    if path.lower().endswith(UNREAD):
        return f"{reason(error)}; {how_to_read(path)}"
    return reason(error)
