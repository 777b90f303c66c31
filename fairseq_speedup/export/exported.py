"""A model out of a file that was exported, whatever engine runs it."""

import sys

import numpy as np

from fairseq_speedup.export.metadata import ExportedFileError, Metadata
from fairseq_speedup.inference.int8 import multiplies_int8

INPUTS, OUTPUTS = ["waveform", "lengths"], ["log_probs", "frames"]


class MissingExtraError(ValueError):
    """Packages that something needs are not installed.

    Args:
        what: needs them
        packages: by name
        extra: of setup.py, that brings them
    """

    def __init__(self, what: str, packages: list[str], extra: str):
        names = " and ".join(packages)
        needed = f"the package {names}, which is" if len(packages) == 1 else f"the packages {names}"
        verb = "" if len(packages) == 1 else ", which are"
        super().__init__(
            f"{what} need {needed}{verb} not installed: pip install {' '.join(packages)} (the "
            f"extra '{extra}')"
        )


def weight_bits() -> int:
    """Of weights in int8 here. Without instructions for int8, sums of two products go through 16
    bits, which cut them off where weights have more than 7."""
    return 8 if multiplies_int8() else 7


class ExportedModel:
    """
    Attributes:
        ENGINE: its name
        engine_version: that runs it here
        path: of the file
        metadata: see Metadata

    Args:
        inputs: that the file says it takes
    Raises:
        ExportedFileError: it takes others
    """

    ENGINE = engine_version = ""

    def __init__(self, path: str, metadata: Metadata, inputs: list[str]):
        self.path, self.metadata = path, metadata
        if metadata.weight_bits == 8 and weight_bits() < 8:
            print(
                f"note: {path} was written for CPUs with instructions for int8 (AVX-VNNI, "
                "AVX512-VNNI or AMX), which this one lacks: sums are cut off, and words can be "
                "lost; export it here, or without --int8",
                file=sys.stderr,
            )
        if inputs != INPUTS:
            raise ExportedFileError(f"{path} takes {', '.join(inputs)}, not {', '.join(INPUTS)}")

    def log_probs(self, waveform, lengths=None) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            waveform: (B, S), zero at padding; normalised if ``metadata.normalize`` says so
            lengths: (B,), valid samples; None where nothing is padded
        Returns:
            log-probabilities (B, T, V) in nats and their valid frames (B,)
        Raises:
            ValueError: shapes that do not fit, or an utterance too short for one frame
        """
        waveform = np.ascontiguousarray(waveform, dtype=np.float32)
        if waveform.ndim != 2 or not waveform.size:
            raise ValueError(f"a batch of waveforms is (utterances, samples), not {waveform.shape}")
        if lengths is None:
            lengths = np.full(len(waveform), waveform.shape[1])
        lengths = np.ascontiguousarray(lengths, dtype=np.int64)
        if lengths.shape != (len(waveform),) or lengths.max() > waveform.shape[1]:
            raise ValueError(
                f"lengths {lengths.tolist()} do not fit waveforms of shape {waveform.shape}"
            )
        if lengths.min() < self.metadata.needed_samples:
            raise ValueError(
                f"an utterance of {lengths.min()} samples is shorter than one output frame, which "
                f"takes {self.metadata.needed_samples} samples with {self.path}"
            )
        return self._run(waveform, lengths)

    def _run(self, waveform: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`log_probs` gives, of input that is checked."""
        raise NotImplementedError
