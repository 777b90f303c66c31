"""Files that were exported, each run by the engine that its name's ending tells."""

from fairseq_speedup.checkpoints.opening import EXPORTED_ENDINGS
from fairseq_speedup.export import openvino_session
from fairseq_speedup.export.exported import ExportedModel
from fairseq_speedup.export.openvino_session import OpenVinoModel
from fairseq_speedup.export.session import OnnxModel

ENGINES = {".onnx": OnnxModel, openvino_session.ENDING: OpenVinoModel}


def is_exported(path: str) -> bool:
    return path.endswith(EXPORTED_ENDINGS)


def open_exported(path: str, num_threads: int = 0) -> ExportedModel:
    """
    Args:
        path: of a file of which :func:`is_exported` is true
        num_threads: CPU threads, 0 for one a core
    Raises:
        FileNotFoundError, ExportedFileError, MissingExtraError
    """
    engine = next(each for ending, each in ENGINES.items() if path.endswith(ending))
    return engine(path, num_threads)
