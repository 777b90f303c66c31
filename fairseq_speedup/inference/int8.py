"""Linear layers with int8 weights and inputs of a byte, on CPUs."""

import warnings

import torch
from torch import nn

from fairseq_speedup.inference.kernels.linears import (
    LinearInC,
    bytes_multiplier,
    narrow_scales,
)
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
    WeightSize,
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
    """Frames times weights, in whole numbers, and what follows: by a product of levels, and
    :mod:`~fairseq_speedup.inference.kernels.rows` before and after it.

    Frames are (..., in_features), or (N, in_features) that overlap; or the levels that another gave
    of them, which are (N, in_features).

    Attributes:
        LEVELS: inputs are from 0 to this
        LARGEST: weights are from -LARGEST to this
        DTYPE: of the levels that it is given
        LEAST_WEIGHTS: with fewer, fp32 is faster
        HOW: it multiplies, in words
        levels: of its inputs

    Args:
        weight: (out_features, in_features)
        bias: (out_features,)
        of_gelus: inputs are what a GELU gave
    """

    LEVELS: int
    LARGEST: int
    DTYPE: torch.dtype
    LEAST_WEIGHTS = 0
    HOW: str

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, of_gelus: bool):
        scales = self.scales_of(weight)
        rounded = (weight / scales[:, None]).round()
        if of_gelus:  # what the lowest level gives
            bias = bias + LOWEST_GELU * scales * rounded.sum(dim=1)
        zero_point = 0 if of_gelus else (self.LEVELS + 1) // 2
        self.bias = bias
        self.levels = Levels(
            count=self.LEVELS if of_gelus else self.LEVELS // 2,
            # bytes are cut off, which rounds then; to floats the product adds the zero point
            offset=zero_point + 0.5 if torch.uint8 == self.DTYPE else 0.0,
            lowest=LOWEST_GELU if of_gelus else None,
            dtype=self.DTYPE,
        )
        self._prepare(rounded.to(torch.int8), scales, zero_point)

    @classmethod
    def scales_of(cls, weight: torch.Tensor) -> torch.Tensor:
        """(out_features,), of which weights (out_features, in_features) are whole numbers."""
        return weight.abs().amax(dim=1).clamp(min=SMALLEST) / cls.LARGEST

    @classmethod
    def runs_here(cls) -> bool:
        """On this CPU, by this torch."""
        raise NotImplementedError

    @classmethod
    def around(cls) -> torch.dtype:
        """What attention between such products is fastest in."""
        return torch.float32

    def outputs(self, frames, norm: nn.LayerNorm | None = None, gelu: bool = False):
        """(..., out_features), normalised and then its GELU, where asked for."""
        rows = rescale(self._sums(frames), norm, gelu)
        return rows if isinstance(frames, LevelRows) else rows.view(*frames.shape[:-1], -1)

    def gelu_to_levels(self, frames, following: "Product") -> LevelRows:
        """Of the GELU of the outputs, for the product that follows."""
        sums = self._sums(frames)
        num_rows = following._num_rows(len(sums.values))
        return rescale_gelu_to_levels(sums, following.levels, num_rows)

    def added(self, frames, residual):
        """``residual`` (..., out_features) and the outputs."""
        return rescale_add(self._sums(frames), _rows_of(residual)).view_as(residual)

    def added_and_normalised(self, frames, residual, norm: nn.LayerNorm):
        """What :meth:`added` gives, and that normalised."""
        both = rescale_add_normalise(self._sums(frames), _rows_of(residual), norm)
        added, normalised = (each.view_as(residual) for each in both)
        return added, normalised

    def _sums(self, frames) -> Sums:
        rows = frames
        if not isinstance(frames, LevelRows):
            rows = frames.reshape(-1, frames.size(-1)).float()
            rows = rows_to_levels(rows, self.levels, self._num_rows(len(rows)))
        values = self._multiplied(rows.levels)[: len(rows.spans)]
        return Sums(values, rows.spans, 1 / self.levels.count, self.bias)

    def _prepare(self, weight: torch.Tensor, scales: torch.Tensor, zero_point: int) -> None:
        """
        Args:
            weight: (out_features, in_features), int8
            scales: (out_features,), of the weights
            zero_point: level of what is 0, or of the lowest
        """
        raise NotImplementedError

    def _num_rows(self, num_rows: int) -> int:
        """How many rows of levels there are to be in place of ``num_rows``."""
        return num_rows

    def _multiplied(self, levels: torch.Tensor) -> torch.Tensor:
        """(N, in_features) -> (N, out_features), fp32, by the weights' scales alone"""
        raise NotImplementedError


class CompiledProduct(Product):
    """All of it in C.

    Attributes:
        NARROW: sums of four products go through 16 bits
    """

    DTYPE = torch.uint8
    NARROW: bool

    @classmethod
    def runs_here(cls):
        return bytes_multiplier(cls.NARROW) is not None

    def outputs(self, frames, norm=None, gelu=False):
        return self.linear.outputs(frames, norm, gelu)

    def gelu_to_levels(self, frames, following):
        return self.linear.gelu_to_levels(frames, following.levels)

    def added(self, frames, residual):
        return self.linear.added(frames, residual)

    def added_and_normalised(self, frames, residual, norm):
        return self.linear.added_and_normalised(frames, residual, norm)

    def _prepare(self, weight, scales, zero_point):
        self.linear = LinearInC.of_bytes(
            weight, scales, zero_point, self.bias, self.levels, self.NARROW
        )


class VnniProduct(CompiledProduct):
    """For CPUs with AVX-512 VNNI; AMX, which multiplies faster, oneDNN has.

    Two threads of an Intel Xeon (Cascade Lake) took 0.3 to 0.6 of the time of oneDNN's product
    alone for up to 40 frames, 0.7 to 0.9 for 133, and as long for more (512 to 4096 channels).
    """

    LEVELS, LARGEST, NARROW = 255, 127, False
    HOW = "in C, four at once (VNNI)"

    @classmethod
    def runs_here(cls):
        return super().runs_here() and cpu_has("avx512_vnni") and not cpu_has("amx_int8")


class NarrowProduct(CompiledProduct):
    """For CPUs with AVX2 or AVX-512 alone, whose sums go through 16 bits: four products are summed
    there, which saves widening sums. They fit whatever the inputs are, as no four of an output's
    weights add up to more than LARGEST_SUM, of those above 0 or of those below. Large ones are
    seldom together: of normally distributed weights the largest is some 84. (Two at once, any two
    of which had to fit, allowed of 75.) With more levels of inputs posteriors of trained models are
    nearer those in fp32 (248 to 256 levels: 0.7 to 0.95 of the divergence), those of small random
    ones twice as far.
    """

    LEVELS, LARGEST, NARROW = 217, 127, True
    LARGEST_SUM = ((1 << 15) - 1) // LEVELS
    HOW = "in C, four at once in 16 bits"

    @classmethod
    def runs_here(cls):
        return super().runs_here() and cpu_has("avx2")

    @classmethod
    def scales_of(cls, weight):
        return narrow_scales(weight, cls.LARGEST, cls.LARGEST_SUM)


class OneDnnProduct(Product):
    """By oneDNN, for CPUs that :func:`multiplies_int8` is true of: without these instructions sums
    of two products go through 16 bits, and are cut off."""

    LEVELS, LARGEST, DTYPE = 255, 127, torch.uint8
    HOW = "oneDNN's"

    @classmethod
    def runs_here(cls):
        return multiplies_int8() and torch.backends.mkldnn.is_available()

    @classmethod
    def around(cls):
        return torch.bfloat16 if multiplies_bf16() else torch.float32

    def _prepare(self, weight, scales, zero_point):
        self.weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scales, self.zero_point = scales, zero_point
        self.zero_points = torch.zeros(len(weight), dtype=torch.int32)

    def _num_rows(self, num_rows):
        return shared_rows(num_rows)

    def _multiplied(self, levels):
        return torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, self.zero_point, self.weight, self.scales,
            self.zero_points, None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


class FbgemmProduct(Product):
    """By FBGEMM, where nothing was compiled. As sums of two products go through 16 bits, inputs
    have 218 levels and weights 151: 2 * 217 * 75 < 2 ** 15.

    With AVX2 it took 0.36 to 0.65 of the time of MKL's product in fp32 (50 to 800 frames, 512 to
    3072 channels), and oneDNN's in int8 0.75 (400 frames; AMD EPYC, torch 2.13). With levels and
    scaling a layer of 65 thousand weights takes 0.96 to 1.5 of its time in fp32, one of 197
    thousand 0.8 to 0.95 (30 to 1000 frames, one thread).
    """

    LEVELS, LARGEST, DTYPE = 217, 75, torch.float32
    LEAST_WEIGHTS = 1 << 17
    HOW = "FBGEMM's"

    @classmethod
    def runs_here(cls):
        return (
            cpu_has("avx2")
            and torch.backends.quantized.engine in ("x86", "fbgemm")
            and hasattr(torch, "_make_per_channel_quantized_tensor")
            and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
        )

    def _prepare(self, weight, scales, zero_point):
        zero_points = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():  # torch warns that these tensors are to go
            warnings.simplefilter("ignore", UserWarning)
            quantised = torch._make_per_channel_quantized_tensor(
                weight, scales.double(), zero_points, 0
            )
        self.weight = torch.ops.quantized.linear_prepack(quantised, None)
        self.zero_point = zero_point

    def _multiplied(self, levels):
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            levels, 1.0, self.zero_point, self.weight
        )


# the faster first
PRODUCTS: list[type[Product]] = [VnniProduct, OneDnnProduct, NarrowProduct, FbgemmProduct]


def product_here() -> type[Product] | None:
    """What multiplies int8 on this CPU, or None."""
    return next((product for product in PRODUCTS if product.runs_here()), None)


def compiled_product_here() -> type[CompiledProduct] | None:
    """That, where it is in C."""
    product = product_here()
    return product if product is not None and issubclass(product, CompiledProduct) else None


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

    in_words = True

    def __init__(self, linear: nn.Linear, of_gelus: bool = False):
        super().__init__(linear)
        product = product_here()
        if product is None:
            raise RuntimeError("int8 on a CPU that check_device refuses")
        weight = linear.weight.detach().float()
        self.product = product(weight, self.bias, of_gelus)
        self.dtype = product.around()
        self.weight = WeightSize(weight)

    @property
    def in_c(self) -> LinearInC | None:
        """Where all of it is in C."""
        return self.product.linear if isinstance(self.product, CompiledProduct) else None

    @classmethod
    def of(cls, linear, of_gelus=False):
        product = product_here()
        if product is not None and linear.weight.numel() < product.LEAST_WEIGHTS:
            return Fp32Linear.of(linear)
        return cls(linear, of_gelus)

    def forward(self, frames):
        return self.product.outputs(frames)

    def gelu(self, frames, norm=None):
        return self.product.outputs(frames, norm, gelu=True)

    def gelu_then(self, frames, second):
        """Of an int8 layer, its levels."""
        entry = second.entry
        if not isinstance(entry, Int8Linear):
            return super().gelu_then(frames, second)
        return self.product.gelu_to_levels(frames, entry.product)

    def added(self, frames, residual):
        return self.product.added(frames, residual)

    def added_and_normalised(self, frames, residual, norm):
        return self.product.added_and_normalised(frames, residual, norm)


def _rows_of(residual):
    return residual.reshape(-1, residual.size(-1)).contiguous()
