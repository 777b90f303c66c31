"""Runs an exported file with ONNX Runtime."""

import os

import numpy as np

from fairseq_speedup.console.refusals import reason
from fairseq_speedup.export.exported import INPUTS, OUTPUTS, ExportedModel, MissingExtraError
from fairseq_speedup.export.metadata import ExportedFileError, Metadata

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = onnxruntime = None


def check_installed() -> None:
    """Raises MissingExtraError."""
    if onnxruntime is None:
        raise MissingExtraError("ONNX files", ["onnx", "onnxruntime"], "onnx")


class OnnxModel(ExportedModel):
    """An exported model in ONNX Runtime, on the CPU.

    Args:
        path: of a file that ``python -m fairseq_speedup export`` has written
        num_threads: CPU threads, 0 for one a core
    Raises:
        FileNotFoundError, ExportedFileError, MissingExtraError
    """

    ENGINE = "ONNX Runtime"

    def __init__(self, path: str, num_threads: int = 0):
        check_installed()
        self.engine_version = onnxruntime.__version__
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
            raise ExportedFileError(
                f"{path} cannot be read as an ONNX model: {reason(error, most=200)}"
            ) from None
        strings = self.session.get_modelmeta().custom_metadata_map
        names = [each.name for each in self.session.get_inputs()]
        super().__init__(path, Metadata.of_strings(path, strings), names)

    def _run(self, waveform: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(self.session.run(OUTPUTS, dict(zip(INPUTS, (waveform, lengths), strict=True))))
