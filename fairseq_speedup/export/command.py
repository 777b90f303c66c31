"""A fine-tuned model, as reduced, in one file that runs without fairseq."""

import os

from fairseq_speedup.config import switched_on
from fairseq_speedup.console import progress
from fairseq_speedup.decoding.options import read_overrides
from fairseq_speedup.export.int8_audio import Int8Audio
from fairseq_speedup.export.metadata import Metadata
from fairseq_speedup.export.onnx_file import export_onnx
from fairseq_speedup.export.openvino_file import RECORDING, check_openvino, export_openvino
from fairseq_speedup.export.openvino_int8 import Int8, Quantised
from fairseq_speedup.export.openvino_session import weights_of
from fairseq_speedup.export.session import check_installed
from fairseq_speedup.export.word_errors import WordErrors
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.profiling.environment import versions
from fairseq_speedup.pruning.cut import cut

EXPORT_PACKAGES = {"onnx": ["onnx", "onnxruntime"], "openvino": ["onnx", "openvino", "nncf"]}


def run(args) -> None:
    is_onnx = args.to == "onnx"
    check_installed() if is_onnx else check_openvino(args.int8)
    with progress.step(f"reading {args.path}"):
        model, cfg, task = load_whole(args.path, args.data, read_overrides(args.model_overrides))
    int8 = audio = None
    if args.int8 and not is_onnx:
        given = (args.data, args.gen_subset, args.audio_files, args.minutes)
        audio = Int8Audio.of(model, cfg, task, *given)
        int8 = Int8(audio, args.wer_budget, args.int8_cnn)
    metadata = metadata_of(model, task, args.path, args.to)
    if is_onnx:
        with progress.step(RECORDING):
            found = export_onnx(model, args.output, metadata, args.int8, args.int8_cnn)
            quantised = None
    else:
        found, quantised = export_openvino(model, args.output, metadata, int8)
    for precision, difference in found.items():
        print(
            f"{precision}: log-probabilities differ from the model's by at most "
            f"{difference.largest:.2g} nats, {difference.mean:.2g} on average; "
            f"{100 * difference.other_best:.2f} % of frames have another best label"
        )
    if quantised is not None and audio is not None:
        print("\n".join(described(quantised, audio.words)))
    written = [args.output] if is_onnx else [args.output, weights_of(args.output)]
    size = sum(map(os.path.getsize, written))
    print(f"{' and '.join(written)}: {size / 2**20:.1f} MiB")


def described(quantised: Quantised, words: WordErrors) -> list[str]:
    """Lines on what int8 cost in words, and what was kept from it."""
    found = []
    if words.num_words:
        rate = f"{words.rate:.2f} in fp32, " if words.by_labels else ""
        found.append(
            f"{words.measure} on {len(words.waveforms)} utterances, {words.num_words} words: "
            f"{rate}{words.rate + quantised.loss:.2f} in int8 ({quantised.loss:+.2f})"
        )
    if quantised.kept_fp32:
        found.append(f"stays in fp32: {', '.join(quantised.kept_fp32)}")
    return found


def load_whole(path: str, data: str | None, overrides: dict):
    """The model, as ``speedup_ctc`` whatever the checkpoint holds, its config and its task."""
    if data is not None:
        overrides = {"data": data, **overrides}
    model, cfg, task = load_finetuned(path, "--path ", overrides)
    if not isinstance(model.w2v_encoder, SpeedupEncoder):
        # an option of ours makes it one, without changing its numbers
        overrides = {**overrides, "padding": "stock"}
        model, cfg, task = load_finetuned(path, "--path ", overrides)
    cut(model.eval())
    return model, cfg, task


def metadata_of(model, task, path: str, engine: str = "onnx") -> Metadata:
    """
    Args:
        path: of the checkpoint
        engine: of EXPORT_PACKAGES, whose versions are kept
    """
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
        versions=versions(EXPORT_PACKAGES[engine]),
    )
