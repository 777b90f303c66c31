"""Runs an exported file with OpenVINO."""

import functools
import os
import re
import sys
import zlib

import numpy as np

from fairseq_speedup.console.refusals import within
from fairseq_speedup.export.exported import INPUTS, OUTPUTS, ExportedModel, MissingExtraError
from fairseq_speedup.export.metadata import ExportedFileError, Metadata

ENDING, WEIGHTS_ENDING = ".xml", ".bin"
SECTION = "fairseq_speedup"  # of a file's runtime information, which has the metadata
TESTED = "2026.4"
EXTRA = "openvino"
PIECE_BYTES = 1 << 24


def openvino_installed():
    """The package, imported where it is first needed: that takes its time.

    Raises:
        MissingExtraError
    """
    try:
        import openvino
    except ImportError:
        raise MissingExtraError("OpenVINO models", ["openvino"], EXTRA) from None
    _say_version(openvino.__version__.split("-")[0])
    return openvino


@functools.cache
def _say_version(version: str) -> None:
    """Says once of an untested version that it is."""
    if not f"{version}.".startswith(f"{TESTED}."):
        print(
            f"note: OpenVINO {version} is not the version that this is tested with, {TESTED}: "
            "look at what export says of the difference from the model, or install that one",
            file=sys.stderr,
        )


def weights_of(path: str) -> str:
    """The file with the weights, beside the one with the graph."""
    return path.removesuffix(ENDING) + WEIGHTS_ENDING


class OpenVinoModel(ExportedModel):
    """An exported model in OpenVINO, on the CPU, in single precision whatever the CPU has (but for
    what the file has in int8).

    Attributes:
        network: as OpenVINO reads it

    Args:
        path: of the .xml that ``python -m fairseq_speedup export --to openvino`` has written
        num_threads: CPU threads, 0 for one a core
    Raises:
        FileNotFoundError, ExportedFileError, MissingExtraError
    """

    ENGINE = "OpenVINO"

    def __init__(self, path: str, num_threads: int = 0):
        openvino = openvino_installed()
        self.engine_version = openvino.__version__
        for each in (path, weights_of(path)):
            if not os.path.isfile(each):
                raise FileNotFoundError(
                    f"OpenVINO file {each} does not exist or is not a file; a model is two, "
                    f"{ENDING} and {WEIGHTS_ENDING}"
                )
        check_is_graph(path)
        check_weights(path)
        try:
            network = openvino.Core().read_model(path)
        except Exception as error:  # of OpenVINO's own, by kind of damage
            raise ExportedFileError(
                f"{path} cannot be read as an OpenVINO model: {reason_of(error)}"
            ) from None
        self._compile(network, path, Metadata.of_strings(path, _strings_of(network)), num_threads)

    @classmethod
    def of(cls, network, path: str, metadata: Metadata, num_threads: int = 0) -> "OpenVinoModel":
        """A network that is in no file yet.

        Args:
            path: for messages
        """
        made = cls.__new__(cls)
        made._compile(network, path, metadata, num_threads)
        return made

    def _compile(self, network, path: str, metadata: Metadata, num_threads: int) -> None:
        names = [each.get_any_name() for each in network.inputs]
        super().__init__(path, metadata, names)
        self.network = network
        options: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if num_threads:
            options["INFERENCE_NUM_THREADS"] = num_threads
        try:
            self.compiled = openvino_installed().Core().compile_model(network, "CPU", options)
        except Exception as error:
            raise ExportedFileError(
                f"{path} cannot be run by OpenVINO here: {reason_of(error)}"
            ) from None

    def _run(self, waveform: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self.compiled(dict(zip(INPUTS, (waveform, lengths), strict=True)))
        log_probs, frames = (found[name] for name in OUTPUTS)
        return log_probs, frames


def crc32_of(path: str) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def check_weights(path: str) -> None:
    """Raises ExportedFileError for weights that are not those that were written with the graph."""
    with open(path, encoding="utf-8", errors="replace") as file:
        saved = re.search(r'<weights_crc32 value="(\d+)"', file.read())
    if saved and int(saved[1]) != crc32_of(weights_of(path)):
        raise ExportedFileError(
            f"{weights_of(path)} is damaged, or of another model than {path}: its checksum is not "
            "the one that was written there"
        )


def check_is_graph(path: str) -> None:
    """Raises ExportedFileError for what is not of OpenVINO's own format: it would try others."""
    with open(path, "rb") as file:
        if b"<net " not in file.read(1000):
            raise ExportedFileError(f"{path} cannot be read as an OpenVINO model: it is none")


def _strings_of(network) -> dict[str, str]:
    """Metadata, as :meth:`Metadata.as_strings` gives them; of another's network, none."""
    if not network.has_rt_info([SECTION]):
        return {}
    found = network.get_rt_info([SECTION])
    return {name: str(value) for name, value in found.value.items()}


def reason_of(error: Exception) -> str:
    """The line of OpenVINO's message that says what is wrong: others name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return within((said or lines or [type(error).__name__])[-1], 200)
