"""Writes a model as one ONNX file."""

import dataclasses
import functools
import os
import tempfile

import torch

from fairseq_speedup.export.comparison import (
    CHECKED_SAMPLES,
    Check,
    Difference,
    ExportError,
    check_same,
    finish,
    record,
)
from fairseq_speedup.export.exported import weight_bits
from fairseq_speedup.export.metadata import Metadata
from fairseq_speedup.export.model import ExportableModel, check_exportable
from fairseq_speedup.export.quiet import quiet
from fairseq_speedup.export.session import OnnxModel, check_installed, onnx

MOST_BYTES = 2**31 - 2**24  # of one protocol buffer, with room for the graph
# matrix products that become int8; others are small, or see a waveform or energies of a spectrum
QUANTISED = ("/transformer/", "/post_extract_proj/")
CNN, NOT_QUANTISED = "/front_end/linears.", "/front_end/linears.0/"


def export_onnx(
    model, path: str, metadata: Metadata, int8: bool, with_cnn: bool = False
) -> dict[str, Difference]:
    """Writes the file whole or not at all.

    Args:
        model: a SpeedupCtc on the CPU, at the speed that is chosen; not to be used any more
        metadata: ``precision`` and ``largest_difference`` are filled in here
        int8: matrix products with int8 weights and activations
        with_cnn: also those of the convolutional front-end
    Returns:
        the difference by precision
    Raises:
        ValueError, ExportError: a model that cannot be exported, or a file that gives other numbers
    """
    check_installed()
    check_exportable(model)
    checks = [Check(model, counts) for counts in CHECKED_SAMPLES]
    exportable = ExportableModel(model)
    num_bytes = 4 * sum(parameter.numel() for parameter in exportable.parameters())
    is_large = num_bytes > MOST_BYTES
    if not int8:
        check_size(num_bytes, ", or give --int8, a quarter of that")
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as work:
        part = os.path.join(work, "fp32.onnx")
        record(exportable, part, metadata.needed_samples)
        if is_large:
            put_weights_beside(part)
        found = {"fp32": _finish(part, metadata, "fp32", checks)}
        check_same(path, found["fp32"])
        if int8:
            fp32, part = part, os.path.join(work, "int8.onnx")
            quantise(fp32, part, is_large, with_cnn)
            metadata = dataclasses.replace(metadata, weight_bits=weight_bits())
            found["int8"] = _finish(part, metadata, "int8", checks)
        os.replace(part, path)
    return found


def check_size(num_bytes: int, remedy: str = "") -> None:
    """Raises ExportError for weights that are too much for one file."""
    if num_bytes > MOST_BYTES:
        raise ExportError(
            f"{num_bytes / 2**30:.1f} GiB of weights cannot be one ONNX file, which holds 2 GiB at "
            f"most: keep fewer layers (keep_layers){remedy}"
        )


def put_weights_beside(path: str) -> None:
    """Moves a graph's weights into a file of their own, where torch has not done so yet: it does
    above 2 GiB, and graphs grow."""
    model = onnx.load(path, load_external_data=False)
    if not any(map(onnx.external_data_helper.uses_external_data, model.graph.initializer)):
        name = f"{os.path.basename(path)}.weights"
        onnx.save(model, path, save_as_external_data=True, location=name)


def put_together(path: str) -> None:
    """Takes the weights beside a graph, in a file whose name begins as the graph's, into its own.

    Raises:
        ExportError: too much for one
    """
    folder, name = os.path.split(path)
    files = [file for file in os.listdir(folder) if file.startswith(name)]
    check_size(sum(os.path.getsize(os.path.join(folder, file)) for file in files))
    onnx.save(onnx.load(path), path)


def quantise(path: str, output: str, is_large: bool, with_cnn: bool) -> None:
    """Dynamic int8: weights with a scale for each output channel, activations with one for each
    tensor as it comes.

    Args:
        is_large: the weights at ``path`` are beside it
        with_cnn: products of the convolutional front-end too
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path, load_external_data=False).graph
    products = [node.name for node in graph.node if node.op_type == "MatMul"]
    chosen = [
        name
        for name in products
        if name.startswith((*QUANTISED, CNN) if with_cnn else QUANTISED)
        and not name.startswith(NOT_QUANTISED)
    ]
    with quiet():
        quantize_dynamic(
            path,
            output,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=chosen,
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=weight_bits() < 8,
            use_external_data_format=is_large,
        )
    if is_large:
        put_together(output)


def _finish(path: str, metadata: Metadata, precision: str, checks: list[Check]) -> Difference:
    """Compares the file with the model and writes its metadata into it."""
    return finish(
        functools.partial(write_metadata, path),
        lambda: OnnxModel(path, torch.get_num_threads()),
        dataclasses.replace(metadata, precision=precision),
        checks,
    )


def write_metadata(path: str, metadata: Metadata) -> None:
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, metadata.as_strings())
    onnx.save(model, path)
