"""The sizes of a distilled student, and its config out of its teacher's."""

from collections.abc import Mapping
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict

# what encoder_variant says of a teacher's own layers: how they were cut, or may be
CUT = ("pruned", "widths", "low_rank")


class StudentSizes(NamedTuple):
    """``student_layers``, ``student_dim`` and so on; a size of 0 is the teacher's."""

    layers: int
    dim: int = 0
    ffn_dim: int = 0
    heads: int = 0

    @classmethod
    def of(cls, options: Mapping) -> "StudentSizes":
        """From the options of a model, which may be of before there were some of them."""
        given = {name: options.get(f"student_{name}") for name in cls._fields}
        return cls(**{name: size for name, size in given.items() if size is not None})


def student_config(pretraining: DictConfig, sizes: StudentSizes, teacher: str) -> DictConfig:
    """The pretraining config of a student.

    Args:
        pretraining: the teacher's
        teacher: names it in messages
    Raises:
        ValueError: sizes that mean nothing
    """
    model = pretraining.model
    narrow = is_narrow(pretraining, sizes)
    most = model.encoder_layers if narrow else model.encoder_layers - 1
    _check("layers", sizes.layers, most, f"{'as many as' if narrow else 'fewer than'} {teacher}")
    own = OmegaConf.merge(pretraining, {"model": {"encoder_layers": sizes.layers}})
    if not narrow:
        return own
    dim = _given("dim", sizes.dim, model.encoder_embed_dim, teacher)
    own.model.encoder_embed_dim = dim
    own.model.encoder_ffn_embed_dim = _given(
        "ffn_dim", sizes.ffn_dim, model.encoder_ffn_embed_dim, teacher
    )
    own.model.encoder_attention_heads = _heads(sizes, dim, model, teacher)
    own.model.conv_pos_groups = _largest_divisor(dim, model.conv_pos_groups)
    with open_dict(own):
        variant = dict(own.get("encoder_variant") or {})
        own.encoder_variant = {name: each for name, each in variant.items() if name not in CUT}
    return own


def is_narrow(pretraining: DictConfig, sizes: StudentSizes) -> bool:
    """Whether its layers have other sizes than the teacher's, and so cannot begin as those."""
    model = pretraining.model
    theirs = (model.encoder_embed_dim, model.encoder_ffn_embed_dim, model.encoder_attention_heads)
    return any(size not in (0, their) for size, their in zip(sizes[1:], theirs, strict=True))


def matched_step(num_layers: int, teacher_layers: int) -> int:
    """Layers of the teacher that each one of the student stands for, where they are matched evenly.

    Raises:
        ValueError: where they cannot be
    """
    if teacher_layers % num_layers:
        raise ValueError(
            f"student_layers={num_layers} cannot be matched evenly with the teacher's "
            f"{teacher_layers} layers; valid values: {_listed(teacher_layers)}"
        )
    return teacher_layers // num_layers


def _check(name: str, size: int, most: int, why: str) -> None:
    if type(size) is not int or not 1 <= size <= most:
        raise ValueError(
            f"student_{name}={size} is out of range: it must be 1 to {most}, {why} has"
        )


def _given(name: str, size: int, theirs: int, teacher: str) -> int:
    if size == 0:
        return theirs
    _check(name, size, theirs, f"or 0 for what {teacher}")
    return size


def _heads(sizes: StudentSizes, dim: int, model: DictConfig, teacher: str) -> int:
    heads = _given("heads", sizes.heads, dim, teacher) if sizes.heads else 0
    heads = heads or model.encoder_attention_heads
    if dim % heads:
        given = f"student_heads={sizes.heads}" + (
            "" if sizes.heads else f", the teacher's {heads},"
        )
        raise ValueError(f"{given} does not divide student_dim={dim}; valid values: {_listed(dim)}")
    if model.get("layer_type") == "conformer" and dim // heads % 2:
        raise ValueError(
            f"student_dim={dim} with {heads} heads: a Conformer's heads have an even width, and "
            f"not {dim // heads}"
        )
    return heads


def _largest_divisor(number: int, most: int) -> int:
    return next(size for size in range(most, 0, -1) if number % size == 0)


def _listed(number: int) -> str:
    """Its divisors."""
    return ", ".join(str(size) for size in range(1, number + 1) if number % size == 0)
