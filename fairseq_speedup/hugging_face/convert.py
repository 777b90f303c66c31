"""Hugging Face folders to fairseq checkpoints and back, each compared with what it was made of."""

import os
import tempfile

from torch._subclasses.fake_tensor import FakeTensorMode

from fairseq_speedup.checkpoints.opening import (
    CheckpointError,
    clear_layout_errors,
    open_checkpoint,
    write_checkpoint,
)
from fairseq_speedup.config import named_reductions
from fairseq_speedup.console import progress
from fairseq_speedup.data.dictionary import dictionary_of, read_dictionary
from fairseq_speedup.data.manifest import ManifestError
from fairseq_speedup.frontend import CnnFrontEnd
from fairseq_speedup.hugging_face.check import (
    LIMIT,
    largest_differences,
    load_ctc,
    load_encoder,
    load_written,
    outputs_of,
)
from fairseq_speedup.hugging_face.checkpoint import checkpoint_of
from fairseq_speedup.hugging_face.folder import load_folder, read_folder
from fairseq_speedup.hugging_face.library import library
from fairseq_speedup.hugging_face.written_folder import WRITTEN, write_folder
from fairseq_speedup.pretrained import build_encoder, check_weights, read_state
from fairseq_speedup.transformer.reused_attention import reused_of

DICTIONARY = "dict.ltr.txt"
COMPARING = "comparing what was written with the source, in float64"


def run(args) -> None:
    library()
    parent = os.path.dirname(os.path.abspath(args.target))
    if os.path.isdir(args.source):
        _to_fairseq(args, parent)
    else:
        _to_hugging_face(args, parent)


def _to_fairseq(args, parent: str) -> None:
    _refuse(args.dictionary is not None, "--dictionary is for a CTC checkpoint, not for a folder")
    _refuse(os.path.isdir(args.target), f"{args.target} is a folder; give a checkpoint to write")
    _refuse(
        os.path.exists(args.target) and not args.overwrite,
        f"{args.target} exists; give --overwrite to replace it",
    )
    normalize = None if args.normalize is None else args.normalize == "true"
    with progress.step(f"reading {args.source}"):
        found = read_folder(args.source, normalize)
    symbols, beside = found.pretrained.labels, os.path.join(parent, DICTIONARY)
    writes_dictionary = symbols and not _is_there(beside, symbols, args.overwrite)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".convert-") as part:
        path = os.path.join(part, os.path.basename(args.target))
        dictionary = os.path.join(part, DICTIONARY)
        write_checkpoint(checkpoint_of(found.pretrained), path)
        if symbols:
            dictionary_of(symbols).save(dictionary)
        with progress.step(COMPARING):
            differences = _compare(args.source, *_outputs_of_both(found, path, dictionary))
        os.replace(path, args.target)
        if writes_dictionary:
            os.replace(dictionary, beside)
    _report(args.source, found.pretrained, found.notes, differences)
    normalized = str(bool(found.pretrained.cfg.task.normalize)).lower()
    use = f": model.w2v_path of fine-tuning, with task.normalize={normalized}"
    if symbols:
        use = f" and {beside}: --path of fairseq-generate, whose data have that dictionary"
    print(f"wrote {args.target}{use}")


def _outputs_of_both(found, path: str, dictionary: str) -> tuple[list, list]:
    """What a written checkpoint and the folder it was made of give, with the labels alone that both
    have, in one order."""
    theirs = outputs_of(found.model, found.conv_layers)
    found.model = None  # large, and in float64
    if found.labels is None:
        return outputs_of(load_written(path), found.conv_layers), theirs
    symbols = read_dictionary(dictionary).symbols
    model = load_ctc(path, symbols, found.pretrained.cfg.task.normalize)
    here, there = found.labels.shared()
    ours = outputs_of(model, found.conv_layers)
    return [logits[:, here] for logits in ours], [logits[:, there] for logits in theirs]


def _to_hugging_face(args, parent: str) -> None:
    _refuse(args.normalize is not None, "--normalize is for a folder, and a checkpoint says it")
    _refuse(
        os.path.exists(args.target) and not os.path.isdir(args.target),
        f"{args.target} is a file; give a folder to write",
    )
    existing = [name for name in WRITTEN if os.path.exists(os.path.join(args.target, name))]
    _refuse(
        bool(existing) and not args.overwrite,
        f"{args.target} has {', '.join(existing)}; give --overwrite to replace what is there",
    )
    with progress.step(f"reading {args.source}"):
        pretrained = _read_checkpoint(args.source, args.dictionary)
        conv_layers, expected = _outputs_of_checkpoint(args.source, pretrained)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".convert-") as part:
        folder = os.path.join(part, "folder")
        os.mkdir(folder)
        write_folder(folder, args.source, pretrained, conv_layers)
        with progress.step(COMPARING):
            found = outputs_of(load_folder(folder), conv_layers)
            differences = _compare(args.source, found, expected)
        _put(folder, args.target, existing)
    notes = []
    if any("\u2581" in symbol for symbol in pretrained.labels or []):
        notes.append("its labels are sentencepiece's: transcripts there have \u2581 for a space")
    _report(args.source, pretrained, notes, differences)
    auto = "AutoModelForCTC and AutoProcessor" if pretrained.head else "AutoModel"
    print(f"wrote {args.target}: for transformers' {auto}")


def _outputs_of_checkpoint(path: str, pretrained) -> tuple[list, list]:
    """The convolutions of its front-end, and what it gives."""
    if pretrained.head:
        model = load_ctc(path, pretrained.labels, pretrained.cfg.task.normalize)
        encoder = model.w2v_encoder.w2v_model
    else:
        encoder = model = load_encoder(pretrained, path)
    conv_layers = CnnFrontEnd(encoder.feature_extractor).conv_layers
    return conv_layers, outputs_of(model, conv_layers)


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise ValueError(reason)


def _is_there(path: str, symbols: list[str], overwrite: bool) -> bool:
    """Whether a dictionary is there and is this one.

    Raises:
        ValueError: another one, which is not to be replaced
    """
    if not os.path.exists(path):
        return False
    try:
        same = read_dictionary(path).symbols == symbols
    except (ManifestError, OSError):
        same = False
    _refuse(
        not same and not overwrite,
        f"{path} exists and is another dictionary; write elsewhere, or give --overwrite",
    )
    return same


def _read_checkpoint(path: str, dictionary: str | None):
    """
    Raises:
        CheckpointError: a model that has no counterpart, or labels that are not the head's
    """
    state = open_checkpoint(path)
    model_cfg = (state.get("cfg") or {}).get("model")
    model_cfg = model_cfg if isinstance(model_cfg, dict) else {}
    reduced = named_reductions(model_cfg)
    if reduced:
        raise CheckpointError(
            f"{path} is a reduced model ({reduced}), which Hugging Face has not: convert needs all "
            "reductions off"
        )
    if model_cfg.get("blank_weight"):
        raise CheckpointError(
            f"{path}: blank_weight={model_cfg['blank_weight']} has no counterpart; it must be 0"
        )
    with clear_layout_errors(path):
        pretrained = read_state(path, state)
    if reused_of(pretrained.cfg) is not None:
        raise CheckpointError(
            f"{path}: its layers reuse the attention maps of others, as those of no Hugging Face "
            "model do; once it is fine-tuned, export writes it for ONNX Runtime or OpenVINO"
        )
    with FakeTensorMode():  # shapes alone
        check_weights(build_encoder(pretrained.cfg), pretrained.weights, path)
    if not pretrained.head:
        _refuse(dictionary is not None, f"--dictionary: {path} is pretrained and has no labels")
        return pretrained
    if dictionary is not None:
        symbols = _read_dictionary(dictionary)
        if pretrained.labels not in (None, symbols):
            raise CheckpointError(f"--dictionary {dictionary} is not the one that {path} holds")
        pretrained.labels = symbols
    if pretrained.labels is None:
        raise CheckpointError(f"{path} does not hold its dictionary: give --dictionary")
    num_rows = pretrained.head["bias"].numel()
    if len(pretrained.labels) != num_rows:
        raise CheckpointError(
            f"{path}: its head has {num_rows} rows, its dictionary {len(pretrained.labels)} symbols"
        )
    return pretrained


def _read_dictionary(path: str) -> list[str]:
    return read_dictionary(path, "--dictionary").symbols


def _compare(source: str, found: list, expected: list) -> list[float]:
    differences = largest_differences(found, expected)
    for difference in differences:
        if not difference <= LIMIT:  # not a number either
            raise CheckpointError(
                f"{source} and what it was converted to differ by {difference:.1e} on random "
                f"audio, more than {LIMIT:.0e}: nothing is written"
            )
    return differences


def _put(folder: str, target: str, existing: list[str]) -> None:
    if not os.path.isdir(target):
        os.rename(folder, target)
        return
    written = os.listdir(folder)
    for name in written:
        os.replace(os.path.join(folder, name), os.path.join(target, name))
    for name in set(existing) - set(written):
        os.remove(os.path.join(target, name))


def _report(source: str, pretrained, notes: list[str], differences: list[float]) -> None:
    parameters = sum(weight.numel() for weight in pretrained.weights.values())
    labels = f", {len(pretrained.labels)} labels" if pretrained.head else ""
    print(
        f"{source}: {pretrained.family}, {parameters:,} parameters of its encoder{labels}; "
        f"{len(pretrained.dropped)} weights that only pretraining needs are left out"
    )
    for note in notes:
        print(f"note: {note}")
    alone, padded = differences
    print(
        f"largest difference on random audio, in float64: {alone:.1e} alone, {padded:.1e} in a "
        f"padded batch (limit {LIMIT:.0e})"
    )
