"""Models as files that run without fairseq: ONNX."""

from fairseq_speedup.export.session import OnnxFileError, OnnxModel

__all__ = ["OnnxFileError", "OnnxModel"]
