"""Configs out of checkpoints, as plain values without code.

To the unpickler a config is data, but not to those who read it later: OmegaConf calls a resolver
where a value says ``${name:...}`` (the environment is one, and programs register others), and
fairseq evaluates some fields as Python. Both are refused here, and OmegaConf's objects, whose inner
state a file may set as it likes, are made anew.
"""

import argparse
import ast
import re
from typing import Any

from omegaconf import Container, Node, OmegaConf

# What fairseq evaluates as Python. Its models' other such fields belong to text alone.
EVALUATED_FIELDS = {
    "conv_feature_layers",
    "extractor_conv_feature_layers",  # DistilHuBERT's name for it
    "conv_aggregator_layers",
    "feature_encoder_spec",  # of a task's precompute_mask_config: its data set evaluates it
    "override_encoder_layers",
    "character_filters",
    "adaptive_input_cutoff",
    "adaptive_softmax_cutoff",
    "xformers_att_config",
    "left_pad_source",
    "left_pad_target",
    "adam_betas",
    "adamax_betas",
    "adafactor_eps",
    "lamb_betas",
    "wer_args",
}
NODE_INTERPOLATION = re.compile(r"\$\{[\w.\[\]]*\}")  # of another field: nothing is called
MAX_EXPRESSION = 1000  # characters
MAX_REPEATS = 100  # of a list in an expression
MAX_DEPTH = 50
MAX_VALUES = 100_000  # in one config; fairseq's own has about a thousand


class UnsafeConfigError(ValueError):
    """A config that would run code, or never end; the message names the field."""


def plain_config(config, name: str):
    """A copy of plain dicts, lists, Namespaces and values, from whatever a checkpoint holds.

    Args:
        config: dict, Namespace or OmegaConf config, with any of them inside
        name: of the config, for messages
    Raises:
        UnsafeConfigError: a field that calls a resolver, an expression that fairseq would evaluate
            and that is more than numbers, or a config too large or within itself
    """
    num_values = 0

    def copy(value, name: str, depth: int):
        nonlocal num_values
        num_values += 1
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            raise UnsafeConfigError(
                f"{name[:100]}... : configs may be {MAX_DEPTH} deep and hold {MAX_VALUES:,} values"
            )
        if isinstance(value, Node):
            value = vars(value)["_content" if isinstance(value, Container) else "_val"]
            return copy(value, name, depth + 1)
        if isinstance(value, argparse.Namespace):
            return argparse.Namespace(**copy(vars(value), name, depth))
        if isinstance(value, dict):
            for key in value:
                _check_resolvers(key, f"the name of {name}.{key}")
            return {key: copy(each, f"{name}.{key}", depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple | set):
            items = [copy(each, f"{name}[{i}]", depth + 1) for i, each in enumerate(value)]
            return items if isinstance(value, list) else type(value)(items)
        _check(value, name)
        return value

    return copy(config, name, depth=0)


def _check(value, name: str) -> None:
    _check_resolvers(value, name)
    if name.split(".")[-1] not in EVALUATED_FIELDS:
        return
    if isinstance(value, bytes | bytearray):
        raise UnsafeConfigError(f"{name} holds bytes, which fairseq would evaluate as Python")
    if isinstance(value, str):
        evaluate(value, name)


def _check_resolvers(value, name: str) -> None:
    text = value.decode("latin-1") if isinstance(value, bytes | bytearray) else value
    if isinstance(text, str) and "${" in NODE_INTERPOLATION.sub("", text):
        raise UnsafeConfigError(
            f"{name[:200]}={value[:100]!r} calls a resolver of OmegaConf; only ${{another.field}} "
            "is allowed"
        )


def evaluate(text: str, name: str):
    """The value of an expression of literals, with ``+`` and ``*`` for numbers and lists, as
    fairseq writes its lists of convolutions.

    Raises:
        UnsafeConfigError: anything else, naming the field ``name``
    """
    try:
        if len(text) > MAX_EXPRESSION:
            raise ValueError
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise UnsafeConfigError(
            f"{name}={text[:100]!r}: fairseq evaluates this field as Python, and here it may be "
            "made of literals, + and * alone, such as '[(512, 10, 5)] + [(512, 3, 2)] * 4'"
        ) from None


def _value(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _value(node.left) + _value(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = ast.literal_eval(node.left), ast.literal_eval(node.right)  # nothing nested
        if any(isinstance(each, int) and each > MAX_REPEATS for each in (left, right)):
            raise ValueError
        return left * right
    return ast.literal_eval(node)


def encoder_variant(pretraining, field: str) -> Any:
    """What a pretraining's config says of its encoder under ``encoder_variant``, or None."""
    found = ((pretraining or {}).get("encoder_variant") or {}).get(field)
    return OmegaConf.to_container(found) if isinstance(found, Container) else found
