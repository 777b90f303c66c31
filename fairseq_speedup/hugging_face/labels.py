"""CTC labels: Hugging Face's vocabulary and fairseq's dictionary, in both directions.

Hugging Face's blank is the pad token, wherever it is; fairseq's is ``<s>``, the first of four
symbols that every dictionary begins with. Each other token is a symbol of its own.
"""

import json
import os
import re
from dataclasses import dataclass

import torch

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.data.manifest import TEXT

SPECIAL_SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>"]  # fairseq's, in order
# what takes their places there, with its usual names
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
WORD_DELIMITER = "|"
NEVER = -1e4  # logit of a symbol that the other side lacks; within the range of fp16


@dataclass
class Labels:
    """
    Attributes:
        symbols: of fairseq's dictionary, its special ones first
        rows: of Hugging Face's head, one for each symbol; None where it has none
    """

    symbols: list[str]
    rows: list[int | None]

    def head(self, weight: torch.Tensor, bias: torch.Tensor) -> dict:
        """fairseq's head, from Hugging Face's (V', C) and (V',)."""
        head = {
            "weight": weight.new_zeros(len(self.rows), weight.size(1)),
            "bias": bias.new_full((len(self.rows),), NEVER),
        }
        ours, theirs = self.shared()
        head["weight"][ours], head["bias"][ours] = weight[theirs], bias[theirs]
        return head

    def shared(self) -> tuple[list[int], list[int]]:
        """Rows of fairseq's head that have one in Hugging Face's, and those."""
        both = [(index, row) for index, row in enumerate(self.rows) if row is not None]
        return [index for index, _ in both], [row for _, row in both]


def read_labels(folder: str, num_rows: int, blank: int) -> Labels:
    """The labels of a head with ``num_rows``, from what a tokenizer has saved. transformers' own
    reading is not used: it takes no other word delimiter than ``|`` from a folder.

    Args:
        blank: ``pad_token_id`` of ``config.json``
    Raises:
        FileNotFoundError, CheckpointError: a vocabulary that is none, or that is not the head's
    """
    path = os.path.join(folder, "vocab.json")
    ids = read_json(path)
    _check_vocabulary(path, ids, num_rows)
    added, special = _read_tokenizer(folder)
    ids = added | ids
    tokens = {row: token for token, row in ids.items() if row < num_rows}
    nameless = [str(row) for row in range(num_rows) if row not in tokens]
    if nameless:
        raise CheckpointError(
            f"{path}: the head has {num_rows} rows, and no token is for {', '.join(nameless)}"
        )
    if ids.get(special["pad_token"]) != blank:
        raise CheckpointError(
            f"{folder}: pad_token={special['pad_token']}, CTC's blank, is "
            f"{ids.get(special['pad_token'])} in vocab.json, and pad_token_id={blank} in "
            "config.json"
        )
    rows: list[int | None] = []
    for name in SPECIAL_TOKENS:
        row = ids.get(special[name])
        rows.append(row if row in tokens and row not in rows else None)
    others = [row for row in range(num_rows) if row not in rows]
    delimiter = ids.get(special["word_delimiter_token"])
    symbols = [WORD_DELIMITER if row == delimiter else tokens[row] for row in others]
    _check_symbols(path, symbols)
    return Labels(SPECIAL_SYMBOLS + symbols, [*rows, *others])


def _read_tokenizer(folder: str) -> tuple[dict[str, int], dict[str, str | None]]:
    """Tokens that a tokenizer has beside its vocabulary; its special ones, by what they are for."""
    found = {}
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        path = os.path.join(folder, name)
        found[name] = read_json(path) if os.path.isfile(path) else {}
    config = found["tokenizer_config.json"]
    try:
        added = {token: int(row) for token, row in found["added_tokens.json"].items()}
        for row, token in (config.get("added_tokens_decoder") or {}).items():
            added[_text(token)] = int(row)
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(
            f"{folder}: added_tokens.json or added_tokens_decoder of tokenizer_config.json does "
            "not give each token a number"
        ) from None
    given = SPECIAL_TOKENS | {"word_delimiter_token": WORD_DELIMITER}
    given |= found["special_tokens_map.json"] | config
    return added, {name: _text(token) for name, token in given.items() if name.endswith("_token")}


def _text(token) -> str | None:
    """Of a token, or of an object with what surrounds it."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def vocabulary(path: str, symbols: list[str]) -> dict[str, int]:
    """``vocab.json`` for the symbols of a fairseq dictionary, each at its index.

    Raises:
        CheckpointError: a dictionary that does not begin as fairseq's do
    """
    if symbols[: len(SPECIAL_SYMBOLS)] != SPECIAL_SYMBOLS:
        raise CheckpointError(
            f"{path}: its dictionary begins with {' '.join(symbols[: len(SPECIAL_SYMBOLS)])}, not "
            f"with {' '.join(SPECIAL_SYMBOLS)}"
        )
    tokens = [*SPECIAL_TOKENS.values(), *symbols[len(SPECIAL_SYMBOLS) :]]
    return {token: index for index, token in enumerate(tokens)}


def read_json(path: str) -> dict:
    """
    Raises:
        FileNotFoundError, CheckpointError: naming the file
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with open(path, encoding=TEXT) as file:
            found = json.load(file)
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def _check_vocabulary(path: str, vocab: dict, num_rows: int) -> None:
    for token, row in vocab.items():
        if type(row) is not int:
            raise CheckpointError(
                f"{path}: {token!r} has no number but a {type(row).__name__}; vocabularies by "
                "language are not read here"
            )
    if len(set(vocab.values())) < len(vocab):
        raise CheckpointError(f"{path}: two tokens have the same number")
    outside = [token for token, row in vocab.items() if not 0 <= row < num_rows]
    if outside:
        raise CheckpointError(
            f"{path} has {len(vocab)} tokens, and the head {num_rows} rows: none for "
            f"{' '.join(outside[:5])}"
        )


def _check_symbols(path: str, symbols: list[str]) -> None:
    """fairseq's dictionaries and labels are split at white space."""
    for symbol in symbols:
        if not symbol or re.search(r"\s", symbol):
            raise CheckpointError(
                f"{path}: {symbol!r} is empty or has white space, which no symbol of a fairseq "
                "dictionary can"
            )
        if symbol in SPECIAL_SYMBOLS or symbols.count(symbol) > 1:
            raise CheckpointError(
                f"{path}: {symbol!r} would be twice in fairseq's dictionary, whose symbols are "
                f"{' '.join(SPECIAL_SYMBOLS)} and the tokens that are not special, with "
                f"{WORD_DELIMITER} for the word delimiter"
            )
