"""Linear layers of each inference form. What they give is of the type of what they take, whatever
they compute in: fp32 on CPUs, the form's own on GPUs."""

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.kernels.linears import LinearInC, floats_multiplier
from fairseq_speedup.inference_forms import LINEARS
from fairseq_speedup.lengths import shared_length

LARGE = 1 << 20  # weights of a product
FINEST_ROWS = 16  # rows of a product are rounded up to a multiple of, at least
ROW_STEPS = 16  # in an octave of rows


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A linear layer of these weights (O, I) and this bias (O,), or without one."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def stacked(linears: list[nn.Linear]) -> nn.Linear:
    """One linear layer that gives what several give of the same input, in order."""
    biases = [
        each.weight.new_zeros(each.out_features) if each.bias is None else each.bias.detach()
        for each in linears
    ]
    return linear_of(torch.cat([each.weight.detach() for each in linears]), torch.cat(biases))


def cpu_has(*instructions: str) -> bool:
    """Whether this CPU has one of these instruction sets, by torch's names; with
    ``ATEN_CPU_CAPABILITY=avx2``, as if it were one with AVX2 alone."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if kernels.MOST_BITS < 512 and capabilities.get("avx512_f"):  # it has more than is asked for
        wider = "avx512", "avx10", "avx_vnni", "amx"
        capabilities = {
            name: capabilities[name] for name in capabilities if not name.startswith(wider)
        }
    return any(capabilities.get(name) for name in instructions)


def multiplies_bf16() -> bool:
    return cpu_has("avx512_bf16", "amx_bf16")


def fuses_gelu() -> bool:
    """Whether a GELU inside oneDNN's product costs less than after it: with AVX2 alone, the product
    of a feed-forward layer took 1.3 times as long with it (AMD EPYC, oneDNN of torch 2.13)."""
    return cpu_has("avx512_f")


def can_pack(weight: torch.Tensor) -> bool:
    """Whether torch has oneDNN's kernels for weights that are packed beforehand, and they pay: in
    fp32, for threads that share a large product or with AVX-512.

    With two threads and AVX2 alone a product of 48 to 250 frames takes 0.6 to 0.9 of its time
    packed, of 500 and more, and with one thread, as long as not; a model of 6 layers of 256 takes
    1.2 times as long packed, and pruned 1.4 (AMD EPYC, torch 2.13). In bf16 a
    base model took 2.40 s packed and 1.62 so over 8 lengths that were new, 1.19 and 1.26 over the
    same again (two threads of an Intel Xeon with AMX, torch 2.11).
    """
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (cpu_has("avx512_f") or (torch.get_num_threads() > 1 and weight.numel() >= LARGE))
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def shared_rows(num_rows: int) -> int:
    """A number of rows that many numbers share, at most a sixteenth more, or 15: oneDNN compiles a
    kernel for each that it has not met lately, and an utterance of a new length would wait for one
    in every layer of another shape."""
    return shared_length(num_rows, FINEST_ROWS, ROW_STEPS)


class FormLayer(nn.Module):
    """Stands for a linear layer, (..., in_features) -> (..., out_features). What follows it in a
    transformer layer is asked of it too, as a form may do both at once."""

    @property
    def entry(self) -> nn.Module:
        """The layer that is given its inputs: itself, or the first of those that it is made of."""
        return self

    def gelu(self, frames, norm: nn.LayerNorm | None = None):
        """GELU of what the layer gives, after a layer norm where there is one."""
        given = self(frames)
        return F.gelu(given if norm is None else norm(given))

    def gelu_then(self, frames, second: nn.Module):
        """What goes into ``second``, another such layer, so that it need not be the GELU itself:
        for the methods of ``second`` alone."""
        return self.gelu(frames)

    def added(self, frames, residual):
        """``residual`` (..., out_features) and what the layer gives, together; ``frames`` that
        :meth:`gelu_then` gave may be rows alone."""
        return residual + self(frames).view_as(residual)

    def added_and_normalised(self, frames, residual, norm: nn.LayerNorm):
        """What :meth:`added` gives, and that after a layer norm."""
        added = self.added(frames, residual)
        return added, norm(added)


class WeightSize:
    """What is left of weights that C has laid out, for MACs. Functions of torch do not take it, as
    they do, and read elsewhere, a tensor without data.

    Args:
        weight: (O, I)
    """

    def __init__(self, weight: torch.Tensor):
        self.shape = weight.shape

    def numel(self) -> int:
        return self.shape.numel()


class Constant(FormLayer):
    """Where all that a linear layer would be given was pruned: its bias, for every frame."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, frames):
        return self.bias.expand(*frames.shape[:-1], -1)

    def macs_per_frame(self) -> int:
        return 0


class InferenceLinear(FormLayer):
    """With weights made ready once.

    Attributes:
        dtype: that attention between such layers is computed in
        in_words: its products may be of whole numbers of 16 bits, where they are in C

    Args:
        linear: whose weights it takes
    """

    dtype = torch.float32
    in_words = False

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = linear.bias
        if bias is None:
            bias = linear.weight.new_zeros(linear.out_features)
        self.bias = bias.detach().float()

    @classmethod
    def of(cls, linear: nn.Linear, of_gelus: bool = False) -> "InferenceLinear":
        """The form's layer: of this class, or of another where that is faster.

        Args:
            of_gelus: its inputs are what a GELU gave
        """
        return cls(linear)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class FloatLinear(InferenceLinear):
    """On CPUs the weights are in the layout of oneDNN's kernels where :func:`can_pack` says so."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        # no buffers: oneDNN's layout can be neither saved nor moved
        self.weight = linear.weight.detach().to(self.dtype)
        self.bias = self.bias.to(self.dtype)
        self.packed = can_pack(self.weight)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, frames):
        return self._product(frames, "none")

    def gelu(self, frames, norm=None):
        return self._product(frames, "gelu") if norm is None else super().gelu(frames, norm)

    def _product(self, frames, activation: str):
        given, frames = frames.dtype, frames.to(self.dtype)
        fused = activation if self.packed and fuses_gelu() else "none"
        if self.packed:
            rows = frames.reshape(-1, self.in_features)
            num_rows = rows.size(0)
            if missing := shared_rows(num_rows) - num_rows:
                rows = F.pad(rows, (0, 0, 0, missing))
            product = torch.ops.mkldnn._linear_pointwise(
                rows.contiguous(), self.weight, self.bias, fused, [], "none"
            )
            product = product[:num_rows].view(*frames.shape[:-1], self.out_features)
        else:
            product = F.linear(frames, self.weight, self.bias)
        return (F.gelu(product) if activation != fused else product).to(given)


@LINEARS.register("fp32")
class Fp32Linear(FloatLinear):
    dtype = torch.float32

    @classmethod
    def of(cls, linear, of_gelus=False):
        if linear.weight.device.type == "cpu" and floats_multiplier():
            return CompiledLinear(linear)
        return cls(linear)


class CompiledLinear(InferenceLinear):
    """In fp32, all of it in C.

    Two threads of an Intel Xeon (Cascade Lake) took 0.4 to 0.65 of the time of oneDNN's product for
    up to 40 frames, 0.65 to 0.8 for 133, and 0.85 to 1.0 for more (512 to 4096 channels). Kept to
    AVX2, one took 0.55 to 0.8 of MKL's for up to 40, 0.95 for 133, and 1.05 to 1.1 for more.
    """

    def __init__(self, linear):
        super().__init__(linear)
        weight = linear.weight.detach()
        self.in_c = LinearInC.of_floats(weight, self.bias)
        self.weight = WeightSize(weight)

    def forward(self, frames):
        return self.in_c.outputs(frames)

    def gelu(self, frames, norm=None):
        return self.in_c.outputs(frames, norm, gelu=True)

    def added(self, frames, residual):
        return self.in_c.added(frames, residual)

    def added_and_normalised(self, frames, residual, norm):
        return self.in_c.added_and_normalised(frames, residual, norm)


@LINEARS.register("bf16")
class Bf16Linear(FloatLinear):
    dtype = torch.bfloat16


@LINEARS.register("fp16")
class Fp16Linear(FloatLinear):
    dtype = torch.float16
