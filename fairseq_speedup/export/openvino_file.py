"""Writes a model as OpenVINO's two files."""

import dataclasses
import functools
import importlib.util
import os
import tempfile

import torch

from fairseq_speedup.console import progress
from fairseq_speedup.export.comparison import (
    CHECKED_SAMPLES,
    Check,
    Difference,
    check_same,
    finish,
    record,
)
from fairseq_speedup.export.exported import MissingExtraError, weight_bits
from fairseq_speedup.export.metadata import Metadata
from fairseq_speedup.export.model import ExportableModel, check_exportable
from fairseq_speedup.export.openvino_int8 import Int8, Quantised, nncf_installed
from fairseq_speedup.export.openvino_session import (
    EXTRA,
    SECTION,
    OpenVinoModel,
    crc32_of,
    openvino_installed,
    weights_of,
)

RECORDING = "recording the graph and comparing it with the model"


def check_openvino(int8: bool) -> None:
    """Raises MissingExtraError where a package is missing that writing needs."""
    openvino_installed()
    if importlib.util.find_spec("onnx") is None:  # the graph goes through it
        raise MissingExtraError("OpenVINO models", ["onnx"], EXTRA)
    if int8:
        nncf_installed()


def export_openvino(
    model, path: str, metadata: Metadata, int8: Int8 | None = None
) -> tuple[dict[str, Difference], Quantised | None]:
    """Writes both files whole or neither.

    Args:
        model: a SpeedupCtc on the CPU, at the speed that is chosen; not to be used any more
        path: of the .xml
        metadata: ``precision``, ``largest_difference`` and ``kept_fp32`` are filled in here
        int8: how products become int8; None for fp32
    Returns:
        the difference by precision, and what became int8
    Raises:
        ValueError, ExportError: a model that cannot be exported, or files that give other numbers
    """
    check_openvino(int8 is not None)
    check_exportable(model)
    quantised = None
    checks = [Check(model, counts) for counts in CHECKED_SAMPLES]
    exportable = ExportableModel(model)
    layers = exportable.transformer.layers.indices
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as work:
        part = os.path.join(work, "fp32.xml")
        with progress.step(RECORDING):
            graph = os.path.join(work, "graph.onnx")
            record(exportable, graph, metadata.needed_samples)
            del exportable
            network = openvino_installed().Core().read_model(graph)
            found = {"fp32": _finish(network, part, metadata, "fp32", checks)}
        check_same(path, found["fp32"])
        if int8 is not None:
            fp32 = OpenVinoModel.of(network, path, metadata, torch.get_num_threads())
            quantised = int8.quantised(fp32, layers)
            part = os.path.join(work, "int8.xml")
            metadata = dataclasses.replace(
                metadata, kept_fp32=quantised.kept_fp32, weight_bits=weight_bits()
            )
            found["int8"] = _finish(quantised.network, part, metadata, "int8", checks)
        put_in_place(part, path)
    return found, quantised


def _finish(
    network, path: str, metadata: Metadata, precision: str, checks: list[Check]
) -> Difference:
    """Writes a network with its metadata, compared with the model."""
    return finish(
        functools.partial(write, network, path),
        lambda: OpenVinoModel(path, torch.get_num_threads()),
        dataclasses.replace(metadata, precision=precision),
        checks,
        lambda: {"weights_crc32": crc32_of(weights_of(path))},
    )


def write(network, path: str, metadata: Metadata) -> None:
    for name, value in metadata.as_strings().items():
        network.set_rt_info(value, [SECTION, name])
    openvino_installed().save_model(network, path, compress_to_fp16=False)


def put_in_place(part: str, path: str) -> None:
    """Moves both files; a graph is never beside another's weights, but for the moment between, when
    its checksum says so."""
    os.replace(weights_of(part), weights_of(path))
    os.replace(part, path)
