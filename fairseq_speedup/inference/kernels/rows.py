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


class LevelsInC(ctypes.Structure):
    """``Levels`` of rows.h."""

    _fields_ = [
        ("count", ctypes.c_float),
        ("offset", ctypes.c_float),
        ("lowest", ctypes.c_float),
        ("both_sides", ctypes.c_int32),
    ]


class NormInC(ctypes.Structure):
    """``Norm`` of rows.h."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float)]

    @classmethod
    def of(cls, norm: nn.LayerNorm | None) -> "NormInC":
        if norm is None:
            return cls()
        if not kernels.takes(*_of(norm)):
            raise TypeError(f"a layer norm of {norm.weight.dtype} on {norm.weight.device}")
        return cls(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps)


_LEVELS, _NORM = ctypes.POINTER(LevelsInC), ctypes.POINTER(NormInC)
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
        return LevelsInC(self.count, self.offset, lowest, self.lowest is None)


@dataclass
class LevelRows:
    """
    levels: (N or more, C); rows after the N-th are there for the product, and mean nothing
    spans: (N,), what ``Levels.count`` levels are of each row
    """

    levels: torch.Tensor
    spans: torch.Tensor


@dataclass
class Sums:
    """What a product of levels gives.

    values: (N, C), contiguous
    spans: (N,), of the rows that went into it
    step: of the levels, as a part of a span
    bias: (C,), to be added
    """

    values: torch.Tensor
    spans: torch.Tensor
    step: float
    bias: torch.Tensor

    def in_c(self, *others) -> bool:
        """Whether C takes them, and ``others``."""
        return kernels.takes(self.values, self.spans, self.bias, *others)

    def given(self) -> tuple:
        """What C is given of them."""
        pointers = self.values.data_ptr(), self.spans.data_ptr(), self.step, self.bias.data_ptr()
        return *pointers, *self.values.shape

    def rescaled(self, norm: nn.LayerNorm | None = None, gelu: bool = False) -> torch.Tensor:
        """What :func:`rescale` gives, by torch's operators."""
        rescaled = torch.addcmul(self.bias, self.values, self.spans[:, None], value=self.step)
        if norm is not None:
            rescaled = norm(rescaled)
        return F.gelu(rescaled) if gelu else rescaled


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


def rescale(sums: Sums, norm: nn.LayerNorm | None = None, gelu: bool = False) -> torch.Tensor:
    """``values * spans * step + bias``, in place of the values; normalised, and its GELU, if asked
    for."""
    if not sums.in_c(*_of(norm)):
        return sums.rescaled(norm, gelu)
    kernels.LIBRARY.rescale(*sums.given(), NormInC.of(norm), gelu)
    return sums.values


def rescale_gelu_to_levels(sums: Sums, levels: Levels, num_rows: int) -> LevelRows:
    """The levels of what :func:`rescale` with a GELU gives; the sums are lost."""
    if not sums.in_c():
        return _to_levels(sums.rescaled(gelu=True), levels, num_rows)
    made = _empty(sums.values, levels, num_rows)
    kernels.LIBRARY.rescale_gelu_to_levels(*sums.given(), levels.in_c, *_pointers(made))
    return made


def rescale_add(sums: Sums, residual) -> torch.Tensor:
    """``residual`` (N, C), contiguous, and what :func:`rescale` gives, in place of the values."""
    if not sums.in_c(residual):
        return residual + sums.rescaled()
    kernels.LIBRARY.rescale_add(*sums.given(), residual.data_ptr(), None, None)
    return sums.values


def rescale_add_normalise(
    sums: Sums, residual, norm: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`rescale_add` gives, and that normalised."""
    if not sums.in_c(residual, *_of(norm)):
        added = residual + sums.rescaled()
        return added, norm(added)
    normalised = torch.empty_like(sums.values)
    kernels.LIBRARY.rescale_add(
        *sums.given(), residual.data_ptr(), NormInC.of(norm), normalised.data_ptr()
    )
    return sums.values, normalised


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
    kernels.LIBRARY.convolve_gelu(*given, num_rows, width, NormInC.of(norm), out.data_ptr())
    return out


def _of(norm: nn.LayerNorm | None) -> tuple:
    return () if norm is None else (norm.weight, norm.bias)


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
