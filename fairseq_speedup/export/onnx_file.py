"""Writes a model as one ONNX file, and compares what the file gives with what the model gives."""

import contextlib
import dataclasses
import os
import tempfile
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from fairseq_speedup.decoding.generator import log_posteriors
from fairseq_speedup.export.exported import INPUTS, OUTPUTS, ExportedModel, weight_bits
from fairseq_speedup.export.metadata import Metadata
from fairseq_speedup.export.model import ExportableModel, check_exportable
from fairseq_speedup.export.session import OnnxModel, check_installed, onnx
from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.refusals import reason

OPSET = 17
TOLERANCE = 1e-4  # nats, of fp32
RELATIVE_TOLERANCE = 1e-5  # of the lowest log-probability, where that is more: single precision
MOST_BYTES = 2**31 - 2**24  # of one protocol buffer, with room for the graph
EXAMPLE_SAMPLES = [12000, 9000]  # that the graph is recorded with
# that it is compared with: a padded batch and single utterances, none as long as the example's
CHECKED_SAMPLES = [[16000, 9876, 13579], [24321], [6789], [0]]  # 0: the shortest utterance
# matrix products that become int8; others are small, or see a waveform or energies of a spectrum
QUANTISED = ("/transformer/", "/post_extract_proj/")
CNN, NOT_QUANTISED = "/front_end/linears.", "/front_end/linears.0/"


class ExportError(ValueError):
    """The file would not give what the model gives."""


@dataclass
class Difference:
    """Of log-probabilities from the model's, over all checks.

    largest: in nats
    mean: of the absolute differences
    other_best: share of frames whose most probable label is another
    tolerance: what fp32 may differ by, in nats
    """

    largest: float
    mean: float
    other_best: float
    tolerance: float


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
        found = {"fp32": finish(part, metadata, "fp32", checks)}
        check_same(path, found["fp32"])
        if int8:
            fp32, part = part, os.path.join(work, "int8.onnx")
            quantise(fp32, part, is_large, with_cnn)
            metadata = dataclasses.replace(metadata, weight_bits=weight_bits())
            found["int8"] = finish(part, metadata, "int8", checks)
        os.replace(part, path)
    return found


def check_same(path: str, found: Difference) -> None:
    """Raises ExportError for an fp32 file that does not give the model's numbers."""
    if found.largest > found.tolerance:
        raise ExportError(
            f"{path} is not written: its log-probabilities differ from the model's by "
            f"{found.largest:.2g} nats, more than {found.tolerance:.2g}"
        )


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


class Check:
    """A batch of noise and what the model gives of it.

    Args:
        counts: samples of its utterances
    """

    def __init__(self, model, counts: list[int]):
        self.waveform, self.lengths = noise(counts, model.w2v_encoder.needed_samples())
        padding_mask = padding_mask_of(self.lengths, self.waveform.size(1))
        net_input = {
            "source": self.waveform,
            "padding_mask": padding_mask if padding_mask.any() else None,
        }
        with torch.no_grad():
            log_probs, self.frames, _ = log_posteriors([model.eval()], net_input)
        self.log_probs = log_probs.transpose(0, 1).numpy()  # T x B x V -> B x T x V

    def run(self, file: ExportedModel):
        """The file's and the model's log-probabilities of all valid frames (frames, V)."""
        try:
            log_probs, frames = file.log_probs(self.waveform, self.lengths)
        except Exception as error:  # of the engine's own
            raise ExportError(
                f"the graph does not run on {self.lengths.tolist()} samples: "
                f"{reason(error)[:200]}. Perhaps a module keeps the lengths that it was recorded "
                "with; in one of your own, write reshape in place of unflatten"
            ) from None
        if frames.tolist() != self.frames.tolist():
            raise ExportError(
                f"the graph gives {frames.tolist()} frames of {self.lengths.tolist()} samples, the "
                f"model {self.frames.tolist()}"
            )
        pairs = list(zip(log_probs, self.log_probs, frames, strict=True))
        ours = np.concatenate([each[:count] for each, _, count in pairs])
        expected = np.concatenate([each[:count] for _, each, count in pairs])
        return ours, expected


def noise(counts: list[int], needed: int):
    """A padded batch (B, S) of at least ``needed`` samples each, and its lengths (B,)."""
    lengths = torch.tensor([max(count, needed) for count in counts])
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(len(counts), int(lengths.max()), generator=generator)
    return waveform.masked_fill(padding_mask_of(lengths, waveform.size(1)), 0), lengths


def record(module: ExportableModel, path: str, needed: int) -> None:
    """Traces the module into an ONNX file whose batch and time are dynamic."""
    axes = {"waveform": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    axes |= {"log_probs": {0: "batch", 1: "time"}, "frames": {0: "batch"}}
    # of tracing: shapes that are compared in Python; the check finds what it froze
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            noise(EXAMPLE_SAMPLES, needed),
            path,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


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
    with _quiet():
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


@contextlib.contextmanager
def _quiet():
    """Without the quantiser's advice to preprocess the model."""
    import logging

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def finish(path: str, metadata: Metadata, precision: str, checks: list[Check]) -> Difference:
    """Compares the file with the model and writes its metadata into it."""
    write_metadata(path, dataclasses.replace(metadata, precision=precision))
    found = compared(OnnxModel(path, torch.get_num_threads()), checks)
    metadata = dataclasses.replace(metadata, precision=precision)
    write_metadata(path, dataclasses.replace(metadata, largest_difference=found.largest))
    return found


def compared(file: ExportedModel, checks: list[Check]) -> Difference:
    """What a file gives with what the model gave, over all checks."""
    pairs = [check.run(file) for check in checks]
    return difference(*(np.concatenate(each) for each in zip(*pairs, strict=True)))


def difference(ours: np.ndarray, expected: np.ndarray) -> Difference:
    """Of log-probabilities (frames, V)."""
    absolute = np.nan_to_num(np.abs(ours - expected), nan=np.inf)  # a NaN is never the largest
    return Difference(
        largest=float(absolute.max()),
        mean=float(absolute.mean()),
        other_best=float((ours.argmax(axis=1) != expected.argmax(axis=1)).mean()),
        tolerance=max(TOLERANCE, RELATIVE_TOLERANCE * float(np.abs(expected).max())),
    )


def write_metadata(path: str, metadata: Metadata) -> None:
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, metadata.as_strings())
    onnx.save(model, path)
