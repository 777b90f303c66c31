"""Runs an exported file with ONNX Runtime."""

import os

import numpy as np

from fairseq_speedup.export.metadata import Metadata, OnnxFileError
from fairseq_speedup.refusals import reason

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = onnxruntime = None

INPUTS, OUTPUTS = ["waveform", "lengths"], ["log_probs", "frames"]


class MissingExtraError(ValueError):
    """onnx or onnxruntime is not installed."""

    def __init__(self):
        super().__init__(
            "ONNX files need the packages onnx and onnxruntime, which are not installed: "
            "pip install onnx onnxruntime (the extra 'onnx')"
        )


def check_installed() -> None:
    """Raises MissingExtraError."""
    if onnxruntime is None:
        raise MissingExtraError


class OnnxModel:
    """An exported model, on the CPU.

    Attributes:
        metadata: see Metadata

    Args:
        path: of a file that ``python -m fairseq_speedup export`` has written
        num_threads: CPU threads, 0 for one a core
    Raises:
        FileNotFoundError, OnnxFileError, MissingExtraError
    """

    def __init__(self, path: str, num_threads: int = 0):
        check_installed()
        if not os.path.isfile(path):
            raise FileNotFoundError(f"ONNX file {path} does not exist or is not a file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3  # errors
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of ONNX Runtime's own, by kind of damage
            raise OnnxFileError(
                f"{path} cannot be read as an ONNX model: {reason(error)[:200]}"
            ) from None
        self.path = path
        strings = self.session.get_modelmeta().custom_metadata_map
        self.metadata = Metadata.of_strings(path, strings)
        names = [each.name for each in self.session.get_inputs()]
        if names != INPUTS:
            raise OnnxFileError(f"{path} takes {', '.join(names)}, not {', '.join(INPUTS)}")

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
        return tuple(self.session.run(OUTPUTS, dict(zip(INPUTS, (waveform, lengths), strict=True))))
