"""Whether audio was cut off: what it tells of its length, beside what there is of it."""

import re
from typing import Any

import soundfile

# in libsndfile's log of WAV, AIFF, AU, W64 and RF64: bytes that the header tells, and that follow
SIZES = re.compile(r"(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)")
STREAMED_SIZE = 0x7FFFF000  # from which on a header is of a stream whose length was not known
IN_WORDS = ("Seems to be a truncated file", "Last page lacks an end-of-stream bit")  # VOC, Ogg
NIST_MARK, NIST_HEADER = b"NIST_1A", 1024  # bytes
NIST_SAMPLES = re.compile(rb"\bsample_count -i (\d+)")
LEAST_SHARE = 0.95  # of the samples that an MP3 tells, some of which it may only estimate


def missing_by_header(header: bytes, file: soundfile.SoundFile) -> str | None:
    """What is missing of a file as its header tells, in words; None where nothing is known to be.

    Args:
        header: its first bytes, :data:`NIST_HEADER` where there are so many
    """
    size = SIZES.search(file.extra_info)
    if size and int(size[1]) < STREAMED_SIZE and int(size[2]) < int(size[1]):
        return f"{size[2]} of {size[1]} bytes of audio are there"
    if any(words in file.extra_info for words in IN_WORDS):
        return "it does not end as files of its format do"
    told = NIST_SAMPLES.search(header) if header.startswith(NIST_MARK) else None
    return missing_samples(file.frames, int(told[1]), 1.0) if told else None


def missing_samples(num_found: int, num_told: int, least_share: float = LEAST_SHARE) -> str | None:
    """The same, by numbers of samples of a channel."""
    if num_found >= least_share * num_told or num_told >= 1 << 48:  # which no file tells of itself
        return None
    return f"{num_found} of {num_told} samples are there"


def first_bytes(source: Any) -> bytes:
    """Of a file's name, or of one that is open, which is left where it is."""
    if not hasattr(source, "read"):
        with open(source, "rb") as file:
            return file.read(NIST_HEADER)
    place = source.tell()
    source.seek(0)
    header = source.read(NIST_HEADER)
    source.seek(place)
    return header
