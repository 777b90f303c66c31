"""Models as files that run without fairseq: ONNX, and OpenVINO's."""

from fairseq_speedup.export.metadata import ExportedFileError
from fairseq_speedup.export.openvino_session import OpenVinoModel
from fairseq_speedup.export.session import OnnxModel

__all__ = ["ExportedFileError", "OnnxModel", "OpenVinoModel"]
