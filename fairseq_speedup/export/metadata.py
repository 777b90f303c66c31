"""What an exported file says about itself, beside its weights."""

import json
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction

from fairseq_speedup.lengths import FrameGrid

FORMAT = "fairseq_speedup ctc"
FORMAT_VERSION = 1


class ExportedFileError(ValueError):
    """A file that is no model exported here, or one of another version."""


@dataclass
class Metadata:
    """
    symbols: of the dictionary; the output's last dimension
    blank: index of the blank among them
    labels: kind of the labels, such as ltr, as in the dictionary's name
    sample_rate_hz: of the waveform
    normalize: whether the model was trained on waveforms of zero mean and unit variance: the caller
        normalises
    first_frame: sample that the first log-probabilities are centred on
    samples_per_frame: from one to the next
    needed_samples: the shortest utterance
    precision: fp32 or int8
    largest_difference: from the model's log-probabilities, in nats, when the file was written
    model: the checkpoint's name
    reductions: options that are not at their default
    versions: of the packages that wrote the file
    kept_fp32: parts of an int8 file that could be in int8 and are not, for the words' sake
    weight_bits: of an int8 file: 7 where the CPU that wrote it has no instructions for int8
    weights_crc32: of the file with the weights, where that is another
    """

    symbols: list[str]
    blank: int
    labels: str
    sample_rate_hz: int
    normalize: bool
    first_frame: Fraction
    samples_per_frame: Fraction
    needed_samples: int
    precision: str
    largest_difference: float
    model: str
    reductions: dict
    versions: dict
    kept_fp32: list[str] = field(default_factory=list)
    weight_bits: int | None = None
    weights_crc32: int | None = None

    def frame_grid(self) -> FrameGrid:
        return FrameGrid(self.first_frame, self.samples_per_frame)

    def as_strings(self) -> dict[str, str]:
        """As a file holds it, each value as JSON."""
        values = asdict(self)
        for name in ("first_frame", "samples_per_frame"):
            values[name] = str(values[name])
        strings = {name: json.dumps(value) for name, value in values.items()}
        return {"format": FORMAT, "format_version": str(FORMAT_VERSION), **strings}

    @classmethod
    def of_strings(cls, path: str, strings: dict[str, str]) -> "Metadata":
        """
        Args:
            path: of the file, for messages
        Raises:
            ExportedFileError: not what :meth:`as_strings` gives
        """
        if strings.get("format") != FORMAT:
            raise ExportedFileError(
                f"{path} is not a model of python -m fairseq_speedup export: its metadata does not "
                f"say format={FORMAT!r}"
            )
        version = strings.get("format_version")
        if version != str(FORMAT_VERSION):
            raise ExportedFileError(
                f"{path} has format_version {version}; this version of fairseq_speedup reads "
                f"{FORMAT_VERSION}: export the checkpoint again"
            )
        try:
            names = [each.name for each in fields(cls) if each.name in strings]
            values = {name: json.loads(strings[name]) for name in names}
            for name in ("first_frame", "samples_per_frame"):
                values[name] = Fraction(values[name])
            metadata = cls(**values)
            if not 0 <= metadata.blank < len(metadata.symbols):
                raise ValueError(f"blank {metadata.blank} is none of the symbols")
        except (KeyError, TypeError, ValueError) as error:
            raise ExportedFileError(f"{path}: its metadata is damaged ({error})") from None
        return metadata
