"""What a file gives that was exported, compared with what the model gives; and the graph that files
are written from."""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fairseq_speedup.console.refusals import reason
from fairseq_speedup.decoding.generator import log_posteriors
from fairseq_speedup.export.exported import INPUTS, OUTPUTS, ExportedModel
from fairseq_speedup.export.metadata import Metadata
from fairseq_speedup.export.model import ExportableModel
from fairseq_speedup.lengths import padding_mask_of

OPSET = 17
TOLERANCE = 1e-4  # nats, of fp32
RELATIVE_TOLERANCE = 1e-5  # of the lowest log-probability, where that is more: single precision
EXAMPLE_SAMPLES = [12000, 9000]  # that the graph is recorded with
# that it is compared with: a padded batch and single utterances, none as long as the example's
CHECKED_SAMPLES = [[16000, 9876, 13579], [24321], [6789], [0]]  # 0: the shortest utterance


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


def check_same(path: str, found: Difference) -> None:
    """Raises ExportError for an fp32 file that does not give the model's numbers."""
    if found.largest > found.tolerance:
        raise ExportError(
            f"{path} is not written: its log-probabilities differ from the model's by "
            f"{found.largest:.2g} nats, more than {found.tolerance:.2g}"
        )


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
                f"{reason(error, most=200)}. Perhaps a module keeps the lengths that it was "
                "recorded with; in one of your own, write reshape in place of unflatten"
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


def finish(
    write: Callable[[Metadata], None],
    opened: Callable[[], ExportedModel],
    metadata: Metadata,
    checks: list[Check],
    of_file: Callable[[], dict] = dict,
) -> Difference:
    """Writes a file, compares it with the model and writes it again with what was found.

    Args:
        write: with these metadata
        opened: what was written
        metadata: ``largest_difference`` is filled in here
        of_file: what else is found of what was written, by the metadata's names
    """
    write(metadata)
    found = compared(opened(), checks)
    write(dataclasses.replace(metadata, largest_difference=found.largest, **of_file()))
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
