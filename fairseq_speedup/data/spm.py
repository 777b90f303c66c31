"""Sentencepiece models of transcripts, and their labels for fairseq (task.labels=spm)."""

import logging
import os
import tempfile
from argparse import Namespace
from collections import Counter
from typing import Any

import sentencepiece

from fairseq_speedup.console import progress
from fairseq_speedup.data.characters import code_points
from fairseq_speedup.data.manifest import ManifestError, read_lines

logger = logging.getLogger(__name__)


def run(args: Namespace) -> None:
    splits = args.splits.split(",") if args.splits else _splits_in(args.data)
    if args.train_split not in splits:
        splits.insert(0, args.train_split)
    transcripts = {split: read_transcripts(args.data, split) for split in splits}
    names = ["spm.model", "spm.vocab", "dict.spm.txt", *(f"{split}.spm" for split in splits)]
    outputs = [os.path.join(args.data, name) for name in names]
    existing = [path for path in outputs if os.path.exists(path)]
    if existing and not args.overwrite:
        raise ManifestError(f"{existing[0]} exists; give --overwrite to replace it")

    with tempfile.TemporaryDirectory(dir=args.data, prefix=".spm-") as part:
        with progress.step("finding pieces of words"):
            processor = train(
                transcripts[args.train_split],
                os.path.join(part, "spm"),
                args.vocab_size,
                args.model_type,
            )
        encoded = {
            split: [processor.encode(line, out_type=str) for line in lines]
            for split, lines in transcripts.items()
        }
        _check_known(processor, encoded, transcripts)
        counts = Counter(piece for line in encoded[args.train_split] for piece in line)
        with open(os.path.join(part, "dict.spm.txt"), "w", encoding="utf-8") as file:
            for piece in _pieces(processor):
                file.write(f"{piece} {counts[piece]}\n")
        for split, lines in encoded.items():
            with open(os.path.join(part, f"{split}.spm"), "w", encoding="utf-8") as file:
                file.writelines(" ".join(pieces) + "\n" for pieces in lines)
        for path in outputs:  # nothing is replaced before everything is right
            os.replace(os.path.join(part, os.path.basename(path)), path)
    print(f"wrote {', '.join(outputs)}")
    print(
        "fine-tune with task.labels=spm criterion.post_process=sentencepiece, "
        "decode with --labels spm --post-process sentencepiece"
    )


def read_transcripts(folder: str, split: str) -> list[str]:
    """Lines of words with blanks between them, from ``{split}.wrd`` or else ``{split}.ltr``."""
    words = os.path.join(folder, f"{split}.wrd")
    letters = os.path.join(folder, f"{split}.ltr")
    if os.path.isfile(words):
        lines = read_lines(words)
    elif os.path.isfile(letters):
        lines = ["".join(line.split()).replace("|", " ") for line in read_lines(letters)]
    else:
        raise FileNotFoundError(f"neither {words} nor {letters} exists")
    transcripts = [" ".join(line.split()) for line in lines]  # as scoring splits
    if not any(transcripts):
        raise ManifestError(f"the transcripts of {split} in {folder} are empty")
    return transcripts


def train(lines: list[str], prefix: str, vocab_size: int, model_type: str) -> Any:
    """Trains a sentencepiece model on ``lines`` and writes ``{prefix}.model`` and ``.vocab``.

    Raises:
        ValueError: the text cannot give ``vocab_size`` pieces
    """
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=prefix,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=1.0,
            normalization_rule_name="identity",
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).split("] ")[-1].strip() or "too small for its characters"
        raise ValueError(f"--vocab-size {vocab_size} does not fit the text: {reason}") from error
    return sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")


def _pieces(processor: Any) -> list[str]:
    """Those that labels are made of.

    Raises:
        ManifestError: a piece that holds white space, where a line of labels would be split
    """
    indices = range(processor.get_piece_size())
    pieces = [
        processor.id_to_piece(index)
        for index in indices
        if not (processor.is_control(index) or processor.is_unknown(index))
    ]
    for piece in pieces:
        if piece.split() != [piece]:
            raise ManifestError(
                f"spm.model has the piece {piece!r} ({code_points(piece)}): white space parts "
                "labels, and is in none"
            )
    return pieces


def _splits_in(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"data folder {folder} does not exist")
    names = {os.path.splitext(f) for f in os.listdir(folder)}
    return sorted({stem for stem, ending in names if ending in (".wrd", ".ltr")})


def _check_known(processor: Any, encoded: dict, transcripts: dict) -> None:
    for split, lines in encoded.items():
        for number, pieces in enumerate(lines, start=1):
            if any(processor.is_unknown(processor.piece_to_id(piece)) for piece in pieces):
                raise ManifestError(
                    f"transcript {number} of {split} has characters that the training transcripts "
                    f"lack: {transcripts[split][number - 1]!r}"
                )
