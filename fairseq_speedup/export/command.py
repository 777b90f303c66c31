"""A fine-tuned model, as reduced, in one file that runs without fairseq."""

import os

from fairseq_speedup import progress
from fairseq_speedup.decoding.options import read_overrides
from fairseq_speedup.export.metadata import Metadata
from fairseq_speedup.export.onnx_file import export_onnx
from fairseq_speedup.export.session import check_installed
from fairseq_speedup.models.config import switched_on
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.profiling.environment import versions
from fairseq_speedup.pruning.cut import cut

EXPORT_PACKAGES = ["onnx", "onnxruntime"]


def run(args) -> None:
    check_installed()
    with progress.step(f"reading {args.path}"):
        model, task = load(args.path, args.data, read_overrides(args.model_overrides))
    with progress.step("recording the graph and comparing it with the model"):
        found = export_onnx(model, args.output, metadata_of(model, task, args.path), args.int8)
    for precision, difference in found.items():
        print(
            f"{precision}: log-probabilities differ from the model's by at most "
            f"{difference.largest:.2g} nats, {difference.mean:.2g} on average; "
            f"{100 * difference.other_best:.2f} % of frames have another best label"
        )
    print(f"{args.output}: {os.path.getsize(args.output) / 2**20:.1f} MiB")


def load(path: str, data: str | None, overrides: dict):
    """The model, as ``speedup_ctc`` whatever the checkpoint holds, and its task."""
    if data is not None:
        overrides = {"data": data, **overrides}
    model, _, task = load_finetuned(path, "--path ", overrides)
    if not isinstance(model.w2v_encoder, SpeedupEncoder):
        # an option of ours makes it one, without changing its numbers
        overrides = {**overrides, "padding": "stock"}
        model, _, task = load_finetuned(path, "--path ", overrides)
    cut(model.eval())
    return model, task


def metadata_of(model, task, path: str) -> Metadata:
    encoder = model.w2v_encoder
    grid = encoder.frame_grid()
    dictionary = task.target_dictionary
    return Metadata(
        symbols=list(dictionary.symbols),
        blank=dictionary.index(task.blank_symbol),
        labels=task.cfg.labels or "",
        sample_rate_hz=task.cfg.sample_rate,
        normalize=bool(task.cfg.normalize),
        first_frame=grid.first,
        samples_per_frame=grid.step,
        needed_samples=encoder.needed_samples(),
        precision="",
        largest_difference=0.0,
        model=os.path.basename(path),
        reductions=switched_on(model.cfg),
        versions=versions(EXPORT_PACKAGES),
    )
