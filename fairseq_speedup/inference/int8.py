"""Linear layers with int8 weights and inputs of a byte, on CPUs."""

import warnings

import torch
from torch import nn

from fairseq_speedup.inference.kernels.rows import (
    SMALLEST,
    LevelRows,
    Levels,
    Sums,
    rescale,
    rescale_add,
    rescale_add_normalise,
    rescale_gelu_to_levels,
    rows_to_levels,
)
from fairseq_speedup.inference.linear import (
    Fp32Linear,
    InferenceLinear,
    cpu_has,
    multiplies_bf16,
    shared_rows,
)
from fairseq_speedup.inference_forms import LINEARS

LOWEST_GELU = -0.17  # no GELU is lower


def multiplies_int8() -> bool:
    """Whether this CPU has instructions that sum products of int8 in 32 bits."""
    return cpu_has("avx512_vnni", "avx_vnni", "amx_int8")


class Product:
    """Multiplies inputs, in whole numbers, with weights.

    Attributes:
        LEVELS: inputs are from 0 to this
        LARGEST: weights are from -LARGEST to this
        DTYPE: of the levels that it is given
        LEAST_WEIGHTS: with fewer, fp32 is faster
        offset: to be added to inputs, of which ``zero_point`` was taken

    Args:
        weight: (out_features, in_features), int8
        scales: (out_features,), of the weights
        zero_point: level of what is 0
    """

    LEVELS: int
    LARGEST: int
    DTYPE: torch.dtype
    LEAST_WEIGHTS = 0
    offset: float

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, zero_point: int):
        raise NotImplementedError

    @classmethod
    def runs_here(cls) -> bool:
        """On this CPU, by this torch."""
        raise NotImplementedError

    def num_rows(self, num_rows: int) -> int:
        """How many it is to be given in place of ``num_rows``."""
        return num_rows

    def __call__(self, levels: torch.Tensor) -> torch.Tensor:
        """(N, in_features) -> (N, out_features), fp32"""
        raise NotImplementedError


class OneDnnProduct(Product):
    """By oneDNN, for CPUs that :func:`multiplies_int8` is true of: without these instructions sums
    of two products go through 16 bits, and are cut off."""

    LEVELS, LARGEST, DTYPE = 255, 127, torch.uint8

    def __init__(self, weight, scales, zero_point):
        self.weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scales, self.zero_point = scales, zero_point
        self.zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self.offset = zero_point + 0.5  # cutting off rounds then

    @classmethod
    def runs_here(cls):
        return multiplies_int8() and torch.backends.mkldnn.is_available()

    def num_rows(self, num_rows):
        return shared_rows(num_rows)

    def __call__(self, levels):
        return torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, self.zero_point, self.weight, self.scales,
            self.zero_points, None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


class FbgemmProduct(Product):
    """By FBGEMM, for CPUs with AVX2 or AVX-512 alone. As sums of two products go through 16 bits
    there, inputs have 182 levels and weights 181: 2 * 181 * 90 < 2 ** 15.

    With AVX2 it took 0.36 to 0.65 of the time of MKL's product in fp32 (50 to 800 frames, 512 to
    3072 channels), and oneDNN's in int8 0.75 (400 frames; AMD EPYC, torch 2.13). With levels and
    scaling a layer of 65 thousand weights takes 0.96 to 1.5 of its time in fp32, one of 197
    thousand 0.8 to 0.95 (30 to 1000 frames, one thread).
    """

    LEVELS, LARGEST, DTYPE = 181, 90, torch.float32
    LEAST_WEIGHTS = 1 << 17
    offset = 0.0

    def __init__(self, weight, scales, zero_point):
        zero_points = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():  # torch warns that these tensors are to go
            warnings.simplefilter("ignore", UserWarning)
            quantised = torch._make_per_channel_quantized_tensor(
                weight, scales.double(), zero_points, 0
            )
        self.weight = torch.ops.quantized.linear_prepack(quantised, None)
        self.zero_point = zero_point

    @classmethod
    def runs_here(cls):
        return (
            cpu_has("avx2")
            and torch.backends.quantized.engine in ("x86", "fbgemm")
            and hasattr(torch, "_make_per_channel_quantized_tensor")
            and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
        )

    def __call__(self, levels):
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            levels, 1.0, self.zero_point, self.weight
        )


PRODUCTS: list[type[Product]] = [OneDnnProduct, FbgemmProduct]  # the faster first


def product_here() -> type[Product] | None:
    """What multiplies int8 on this CPU, or None."""
    return next((product for product in PRODUCTS if product.runs_here()), None)


@LINEARS.register("int8")
class Int8Linear(InferenceLinear):
    """int8 weights with a scale for each output; inputs become levels as they come, with a scale
    for each frame, so that no frame's numbers depend on what else is in the batch.

    Levels go from minus the largest of a frame to plus that; of what a GELU gave, which has next
    to nothing below 0, from the lowest that it gives, and are half as far from each other.

    Args:
        linear: whose weights it takes
        of_gelus: its inputs are what a GELU gave
    """

    dtype = torch.bfloat16 if multiplies_bf16() else torch.float32

    def __init__(self, linear: nn.Linear, of_gelus: bool = False):
        super().__init__(linear)
        product = product_here()
        if product is None:
            raise RuntimeError("int8 on a CPU that check_device refuses")
        self.of_gelus = of_gelus
        zero_point = 0 if of_gelus else (product.LEVELS + 1) // 2
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=SMALLEST) / product.LARGEST
        rounded = (weight / scales[:, None]).round()
        if of_gelus:  # what the lowest level gives
            self.bias = self.bias + LOWEST_GELU * scales * rounded.sum(dim=1)
        self.product = product(rounded.to(torch.int8), scales, zero_point)
        self.levels = Levels(
            count=product.LEVELS if of_gelus else product.LEVELS // 2,
            offset=self.product.offset,
            lowest=LOWEST_GELU if of_gelus else None,
            dtype=product.DTYPE,
        )
        self.weight = rounded.to("meta")  # of the size that MACs ask for: the product has its own

    @classmethod
    def of(cls, linear, of_gelus=False):
        product = product_here()
        if product is not None and linear.weight.numel() < product.LEAST_WEIGHTS:
            return Fp32Linear(linear)
        return cls(linear, of_gelus)

    def forward(self, frames):
        return self._shaped(rescale(self._sums(frames)), frames)

    def gelu(self, frames, norm=None):
        return self._shaped(rescale(self._sums(frames), norm, gelu=True), frames)

    def gelu_then(self, frames, second):
        """Of an int8 layer, its levels."""
        entry = second.entry
        if not isinstance(entry, Int8Linear):
            return super().gelu_then(frames, second)
        sums = self._sums(frames)
        num_rows = entry.product.num_rows(len(sums.values))
        return rescale_gelu_to_levels(sums, entry.levels, num_rows)

    def added(self, frames, residual):
        return rescale_add(self._sums(frames), self._rows(residual)).view_as(residual)

    def added_and_normalised(self, frames, residual, norm):
        both = rescale_add_normalise(self._sums(frames), self._rows(residual), norm)
        added, normalised = (each.view_as(residual) for each in both)
        return added, normalised

    def _sums(self, frames) -> Sums:
        """Of frames or of their levels."""
        if not isinstance(frames, LevelRows):
            rows = frames.reshape(-1, self.in_features).float()
            frames = rows_to_levels(rows, self.levels, self.product.num_rows(len(rows)))
        values = self.product(frames.levels)[: len(frames.spans)]
        return Sums(values, frames.spans, 1 / self.levels.count, self.bias)

    def _shaped(self, rows, frames):
        return rows if isinstance(frames, LevelRows) else rows.view(*frames.shape[:-1], -1)

    def _rows(self, residual):
        return residual.reshape(-1, self.out_features).contiguous()
