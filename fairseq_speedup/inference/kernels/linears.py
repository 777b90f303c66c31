"""Linear layers in C, in fp32 and with int8 weights, for CPUs with AVX2 or AVX-512: one call for
the levels of what goes in, the products and what follows them."""

import ctypes
import math

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.kernels import FLOAT, INT, POINTER, SIZE, declare
from fairseq_speedup.inference.kernels.rows import (
    SMALLEST,
    LevelRows,
    Levels,
    LevelsInC,
    NormInC,
)

MOST_LANES = 16  # outputs that are computed at once
READ_AT_ONCE = 8  # bytes of inputs, at most: two groups of multiply.h


class _Weights(ctypes.Structure):
    _fields_ = [("packed", POINTER), ("inputs", SIZE), ("outputs", SIZE), ("by", POINTER)]


class LinearStruct(ctypes.Structure):
    """``Layer`` of linears.h."""

    _fields_ = [
        ("weights", _Weights),
        ("starts", POINTER),
        ("scales", POINTER),
        ("bias", POINTER),
        ("levels", LevelsInC),
        ("step", ctypes.c_float),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        ("frames", POINTER),
        ("stride", SIZE),
        ("count", SIZE),
        ("bytes", POINTER),
        ("spans", POINTER),
    ]


class _After(ctypes.Structure):
    _fields_ = [
        ("residual", POINTER),
        ("norm", NormInC),
        ("normalised", POINTER),
        ("levels", ctypes.POINTER(LevelsInC)),
        ("bytes", POINTER),
        ("spans", POINTER),
        ("gelu", ctypes.c_int32),
    ]


class _Convolution(ctypes.Structure):
    _fields_ = [("groups", SIZE), ("kernel", SIZE), ("stride", SIZE), ("padding", SIZE)]


declare("floats_multiplier", INT, returns=POINTER)
declare("bytes_multiplier", INT, INT, returns=POINTER)
declare("packed_size", SIZE, SIZE, POINTER, returns=SIZE)
declare("pack", POINTER, SIZE, SIZE, POINTER, POINTER)
declare("narrow_scales", POINTER, SIZE, SIZE, FLOAT, FLOAT, FLOAT, POINTER)
declare("linear", *map(ctypes.POINTER, (LinearStruct, _Rows, _After)), POINTER, returns=INT)
declare(
    "convolve_groups",
    *map(ctypes.POINTER, (LinearStruct, _Convolution)),
    *(POINTER, SIZE, SIZE, POINTER),
    returns=INT,
)


def floats_multiplier() -> int | None:
    """What :meth:`LinearInC.of_floats` multiplies by, or None where nothing was compiled that this
    CPU can run."""
    return kernels.LIBRARY and kernels.LIBRARY.floats_multiplier(kernels.MOST_BITS)


def bytes_multiplier(narrow: bool) -> int | None:
    """What :meth:`LinearInC.of_bytes` multiplies by, or None.

    Args:
        narrow: sums of four products go through 16 bits, in which they have to fit
            (:func:`narrow_scales`); if not, the CPU needs an instruction that sums four in 32
            (VNNI)
    """
    return kernels.LIBRARY and kernels.LIBRARY.bytes_multiplier(kernels.MOST_BITS, narrow)


def narrow_scales(weight: torch.Tensor, largest: int, largest_sum: int) -> torch.Tensor:
    """(out_features, in_features), fp32 -> (out_features,): the finest scales by which no weight is
    more than ``largest``, and no four whose products a narrow multiplier sums in 16 bits add up to
    more than ``largest_sum``, of those above 0 or of those below."""
    weight, scales = weight.contiguous(), torch.empty(len(weight))
    limits = SMALLEST, largest, largest_sum
    kernels.LIBRARY.narrow_scales(weight.data_ptr(), *weight.shape, *limits, scales.data_ptr())
    return scales


class LinearInC(kernels.HoldsAddresses):
    """Made by :meth:`of_floats` or :meth:`of_bytes`. Its methods raise ValueError for frames of
    another width, or a residual of other sizes than the outputs.

    Args:
        weight: (out_features, in_features), fp32 or int8
        starts: (out_features,), what sums begin with, fp32 or int32
        multiplier: of what weights are
    """

    def __init__(self, weight: torch.Tensor, starts: torch.Tensor, multiplier: int | None):
        if multiplier is None:
            raise RuntimeError("no compiled product for this CPU")
        self.out_features, self.in_features = weight.shape
        shape, weight = (self.in_features, self.out_features, multiplier), weight.contiguous()
        packed = torch.empty(kernels.LIBRARY.packed_size(*shape), dtype=torch.int8)
        kernels.LIBRARY.pack(weight.data_ptr(), *shape, packed.data_ptr())
        missing = -self.out_features % MOST_LANES
        self._held = [packed, F.pad(starts, (0, missing))]
        self.struct = LinearStruct(_Weights(packed.data_ptr(), *shape), self._held[1].data_ptr())

    @classmethod
    def of_floats(cls, weight, bias) -> "LinearInC":
        """
        Args:
            bias: (out_features,)
        """
        return cls(weight.float(), bias.float(), floats_multiplier())

    @classmethod
    def of_bytes(
        cls, weight, scales, zero_point: int, bias, levels: Levels, narrow: bool
    ) -> "LinearInC":
        """
        Args:
            scales: (out_features,), of the weights
            zero_point: level of what is 0, or of the lowest
            bias: (out_features,)
            levels: of its inputs
            narrow: see :func:`bytes_multiplier`
        """
        starts = -zero_point * weight.sum(dim=1, dtype=torch.int32)
        made = cls(weight, starts, bytes_multiplier(narrow))
        held = scales.float().contiguous(), bias.float().contiguous()
        made._held += held
        layer = made.struct
        layer.scales, layer.bias = (each.data_ptr() for each in held)
        layer.levels, layer.step = levels.in_c, 1 / levels.count
        return made

    def outputs(self, frames, norm: nn.LayerNorm | None = None, gelu: bool = False):
        """(..., out_features), normalised and then its GELU, where asked for.

        Args:
            frames: (..., in_features), or (N, in_features) that overlap; or their levels
        """
        rows, shape = self._rows(frames)
        return self._run(rows, shape, _After(norm=NormInC.of(norm), gelu=gelu))

    def gelu_to_levels(self, frames, levels: Levels) -> LevelRows:
        """Of its GELU, bytes for another of these."""
        rows, shape = self._rows(frames)
        # of the last row the group that is read may end behind it
        num_rows = rows.count + -(-(READ_AT_ONCE - 1) // self.out_features)
        made = LevelRows(
            torch.empty(num_rows, self.out_features, dtype=torch.uint8), torch.empty(rows.count)
        )
        after = _After(
            levels=ctypes.pointer(levels.in_c),
            bytes=made.levels.data_ptr(),
            spans=made.spans.data_ptr(),
            gelu=True,
        )
        self._run(rows, shape, after)
        return made

    def added(self, frames, residual):
        """``residual`` (..., out_features) and the outputs."""
        rows, shape = self._rows(frames)
        residual = self._residual(residual, shape)
        return self._run(rows, residual.shape, _After(residual=residual.data_ptr()))

    def added_and_normalised(self, frames, residual, norm: nn.LayerNorm):
        """What :meth:`added` gives, and that normalised."""
        rows, shape = self._rows(frames)
        residual = self._residual(residual, shape)
        normalised = torch.empty_like(residual)
        after = _After(
            residual=residual.data_ptr(),
            norm=NormInC.of(norm),
            normalised=normalised.data_ptr(),
        )
        return self._run(rows, residual.shape, after), normalised

    def _rows(self, frames) -> tuple[_Rows, tuple]:
        """And the shape of the outputs."""
        levels = frames.levels if isinstance(frames, LevelRows) else frames
        if levels.size(-1) != self.in_features:
            raise ValueError(f"frames of {levels.size(-1)} channels, {self.in_features} needed")
        if isinstance(frames, LevelRows):
            count, stride = len(frames.spans), frames.levels.stride(0)
            rows = _Rows(None, stride, count, frames.levels.data_ptr(), frames.spans.data_ptr())
            return rows, (count, self.out_features)
        overlapping = frames.dim() == 2 and frames.stride(1) == 1
        if not overlapping or frames.dtype is not torch.float32:
            frames = _as_c_reads(frames)
        stride = frames.stride(0) if overlapping else self.in_features
        rows = _Rows(frames.data_ptr(), stride, frames.numel() // self.in_features)
        rows.held = frames  # the structure has an address alone
        return rows, (*frames.shape[:-1], self.out_features)

    def _residual(self, residual, shape):
        if residual.numel() != math.prod(shape) or residual.size(-1) != shape[-1]:
            raise ValueError(f"a residual of {tuple(residual.shape)} to outputs of {shape}")
        return _as_c_reads(residual)

    def _run(self, rows: _Rows, shape, after: _After) -> torch.Tensor:
        out = torch.empty(shape)
        if kernels.LIBRARY.linear(self.struct, rows, after, out.data_ptr()):
            raise MemoryError(f"a linear layer of {rows.count} frames")
        return out


class GroupedConvInC:
    """A convolution over time in groups of channels, with int8 weights: every group's inputs are
    levels of one scale for all frames of an utterance.

    Args:
        groups: a layer of bytes for each group, of (K * C / G) inputs: the frames that the kernel
            covers, one behind another
    """

    def __init__(self, groups: list[LinearInC]):
        self._held = groups
        self._layers = (LinearStruct * len(groups))(*(each.struct for each in groups))
        self.out_channels = sum(each.out_features for each in groups)

    def outputs(self, frames, kernel_size: int, stride: int, padding: int, num_outputs: int):
        """(T, C) -> (num_outputs, C')"""
        frames = _as_c_reads(frames)
        num_channels = len(self._held) * (self._held[0].in_features // kernel_size)
        if frames.size(-1) != num_channels:
            raise ValueError(f"frames of {frames.size(-1)} channels, {num_channels} needed")
        out = torch.empty(num_outputs, self.out_channels)
        by = _Convolution(len(self._layers), kernel_size, stride, padding)
        if kernels.LIBRARY.convolve_groups(
            self._layers, by, frames.data_ptr(), len(frames), num_outputs, out.data_ptr()
        ):
            raise MemoryError(f"levels of {len(frames)} frames")
        return out


def _as_c_reads(frames) -> torch.Tensor:
    return frames.float().contiguous()
