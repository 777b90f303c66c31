"""What a form does to rows of frames between products: in C, one pass over memory each.

What is not fp32, or where nothing was compiled, torch's operators do; what is said to be contiguous
has to be.
"""

import ctypes
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.kernels import FLOAT, INT, POINTER, SIZE, declare
from fairseq_speedup.lengths import conv_length

SMALLEST = 1e-12  # span of a row


class _Levels(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_float),
        ("offset", ctypes.c_float),
        ("lowest", ctypes.c_float),
        ("both_sides", ctypes.c_int32),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float)]

    @classmethod
    def of(cls, norm: nn.LayerNorm | None) -> "_Norm":
        return (
            cls() if norm is None else cls(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps)
        )


_LEVELS, _NORM = ctypes.POINTER(_Levels), ctypes.POINTER(_Norm)
_SUMS = [POINTER, POINTER, FLOAT, POINTER, SIZE, SIZE]  # spans, step, bias, rows, width
_INTO = [POINTER, POINTER, POINTER]  # bytes, floats, spans
declare("rows_to_levels", POINTER, SIZE, SIZE, SIZE, _LEVELS, *_INTO)
declare("rescale", *_SUMS, _NORM, INT)
declare("rescale_gelu_to_levels", *_SUMS, _LEVELS, *_INTO)
declare("rescale_add", *_SUMS, POINTER, _NORM, POINTER)
declare("convolve_gelu", POINTER, SIZE, SIZE, POINTER, POINTER, SIZE, SIZE, _NORM, POINTER)


@dataclass(frozen=True)
class Levels:
    """Of a row: from minus its largest number to plus that, or from ``lowest`` to its largest.

    count: of the levels above 0, or above the lowest
    offset: the level of 0, or of the lowest
    lowest: that any number can be, or None
    dtype: ``torch.uint8``, cut off, or ``torch.float32``, as they come
    """

    count: int
    offset: float
    lowest: float | None
    dtype: torch.dtype

    @functools.cached_property
    def in_c(self):
        """What C is given."""
        lowest = 0.0 if self.lowest is None else self.lowest
        return _Levels(self.count, self.offset, lowest, self.lowest is None)


@dataclass
class LevelRows:
    """
    levels: (N or more, C); rows after the N-th are there for the product, and mean nothing
    spans: (N,), what ``Levels.count`` levels are of each row
    """

    levels: torch.Tensor
    spans: torch.Tensor


def rows_to_levels(rows: torch.Tensor, levels: Levels, num_rows: int) -> LevelRows:
    """
    Args:
        rows: (N, C), fp32; may overlap
        num_rows: of the levels, N or more
    """
    if not kernels.takes(rows):
        return _to_levels(rows, levels, num_rows)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    made = _empty(rows, levels, num_rows)
    kernels.LIBRARY.rows_to_levels(
        rows.data_ptr(), rows.stride(0), *rows.shape, levels.in_c, *_pointers(made)
    )
    return made


def rescale(
    sums, spans, step: float, bias, norm: nn.LayerNorm | None = None, gelu: bool = False
) -> torch.Tensor:
    """``sums * spans * step + bias``, in place of ``sums``; normalised, and its GELU, if asked for.

    Args:
        sums: (N, C), contiguous
        spans: (N,)
        bias: (C,)
    """
    if not kernels.takes(sums, spans, bias, *_of(norm)):
        return _rescale(sums, spans, step, bias, norm, gelu)
    kernels.LIBRARY.rescale(*_given(sums, spans, step, bias), _Norm.of(norm), gelu)
    return sums


def rescale_gelu_to_levels(sums, spans, step, bias, levels: Levels, num_rows: int) -> LevelRows:
    """The levels of what :func:`rescale` with a GELU gives; ``sums`` are lost."""
    if not kernels.takes(sums, spans, bias):
        gelus = _rescale(sums, spans, step, bias, None, True)
        return _to_levels(gelus, levels, num_rows)
    made = _empty(sums, levels, num_rows)
    given = _given(sums, spans, step, bias)
    kernels.LIBRARY.rescale_gelu_to_levels(*given, levels.in_c, *_pointers(made))
    return made


def rescale_add(sums, spans, step, bias, residual) -> torch.Tensor:
    """``residual`` (N, C), contiguous, and what :func:`rescale` gives, in place of ``sums``."""
    if not kernels.takes(sums, spans, bias, residual):
        return residual + _rescale(sums, spans, step, bias)
    given = _given(sums, spans, step, bias)
    kernels.LIBRARY.rescale_add(*given, residual.data_ptr(), None, None)
    return sums


def rescale_add_normalise(
    sums, spans, step, bias, residual, norm: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`rescale_add` gives, and that normalised."""
    if not kernels.takes(sums, spans, bias, residual, *_of(norm)):
        added = residual + _rescale(sums, spans, step, bias)
        return added, norm(added)
    normalised = torch.empty_like(sums)
    given = _given(sums, spans, step, bias)
    kernels.LIBRARY.rescale_add(*given, residual.data_ptr(), _Norm.of(norm), normalised.data_ptr())
    return sums, normalised


def convolve_gelu(
    samples, stride: int, weight, bias, norm: nn.LayerNorm | None = None
) -> torch.Tensor:
    """(S,) -> (T, C): a convolution of few samples, normalised where asked for, and its GELU.

    Args:
        weight: (K, C), contiguous
        bias: (C,)
    """
    kernel_size, width = weight.shape
    if not kernels.takes(samples, weight, bias, *_of(norm)):
        convolved = torch.addmm(bias, samples.unfold(0, kernel_size, stride), weight)
        return F.gelu(convolved if norm is None else norm(convolved))
    num_rows = conv_length(len(samples), kernel_size, stride)
    out = torch.empty(num_rows, width)
    samples = samples.contiguous()
    given = samples.data_ptr(), stride, kernel_size, weight.data_ptr(), bias.data_ptr()
    kernels.LIBRARY.convolve_gelu(*given, num_rows, width, _Norm.of(norm), out.data_ptr())
    return out


def _of(norm: nn.LayerNorm | None) -> tuple:
    return () if norm is None else (norm.weight, norm.bias)


def _given(sums, spans, step, bias) -> tuple:
    return sums.data_ptr(), spans.data_ptr(), step, bias.data_ptr(), *sums.shape


def _empty(rows, levels: Levels, num_rows: int) -> LevelRows:
    made = torch.empty(num_rows, rows.size(1), dtype=levels.dtype)
    return LevelRows(made, torch.empty(rows.size(0)))


def _pointers(made: LevelRows) -> tuple:
    """Of bytes or floats, and of spans."""
    levels, spans = made.levels.data_ptr(), made.spans.data_ptr()
    return (levels, None, spans) if made.levels.dtype == torch.uint8 else (None, levels, spans)


# -- by torch's operators --------------------------------------------------------------------------


def _to_levels(rows, levels: Levels, num_rows: int) -> LevelRows:
    spans = rows.amax(dim=1, keepdim=True)
    offset = rows.new_tensor(levels.offset)
    if levels.lowest is None:  # faster than of abs()
        spans = torch.maximum(spans, -rows.amin(dim=1, keepdim=True)).clamp_(min=SMALLEST)
        inverse = spans.reciprocal()
    else:
        inverse = spans.sub_(levels.lowest).clamp_(min=SMALLEST).reciprocal()
        offset = torch.add(offset, inverse, alpha=-levels.lowest * levels.count)
    made = torch.addcmul(offset, rows, inverse, value=levels.count).to(levels.dtype)
    if missing := num_rows - len(rows):
        made = F.pad(made, (0, 0, 0, missing))
    return LevelRows(made, spans[:, 0])


def _rescale(sums, spans, step: float, bias, norm=None, gelu: bool = False) -> torch.Tensor:
    rescaled = torch.addcmul(bias, sums, spans[:, None], value=step)
    if norm is not None:
        rescaled = norm(rescaled)
    return F.gelu(rescaled) if gelu else rescaled
