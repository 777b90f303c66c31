"""The positional convolution in its inference form: a long kernel with few channels in a group, for
which the libraries' kernels are slow or, at some sizes, a hundred times slower than need be."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import remove_weight_norm

from fairseq_speedup.inference.int8 import Int8Linear, compiled_product_here
from fairseq_speedup.inference.kernels.linears import GroupedConvInC
from fairseq_speedup.inference.linear import InferenceLinear
from fairseq_speedup.lengths import conv_length


def kind_for(device: torch.device, linear: type[InferenceLinear]) -> "type[LongConv1d]":
    """
    Args:
        linear: the form's linear layers
    """
    if device.type != "cpu":
        return FourierConv1d if linear.dtype == torch.float32 else BandedConv1d
    in_int8 = issubclass(linear, Int8Linear) and compiled_product_here() is not None
    return Int8Conv1d if in_int8 else FourierConv1d


class LongConv1d(nn.Conv1d):
    """What they have in common.

    Attributes:
        how: it computes, in words
    """

    how: str

    @classmethod
    def convert(cls, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        """Makes of ``conv`` one of these: others hold it, to choose its stride."""
        if hasattr(conv, "weight_g"):
            remove_weight_norm(conv)
        weight, bias = conv.weight.detach(), conv.bias.detach()
        del conv.weight, conv.bias
        conv.__class__ = cls
        conv.prepare(weight, bias, dtype)

    def prepare(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        """
        Args:
            weight: (C', C / G, K), for G groups
            bias: (C',)
        """
        raise NotImplementedError

    def outputs(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T', C'), padding included."""
        raise NotImplementedError

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, C', T')"""
        return self.outputs(frames.transpose(1, 2)).transpose(1, 2)

    def num_outputs(self, num_frames: int, stride: int = 1) -> int:
        (padding,), (kernel_size,) = self.padding, self.kernel_size
        return conv_length(num_frames + 2 * padding, kernel_size, stride)


class FourierConv1d(LongConv1d):
    """A convolution with a long kernel as products of spectra, block by block (overlap-save).

    Of wav2vec 2.0's kernel of 128 frames it needs a thirtieth of the multiplications; blocks have
    one size, so that no length meets a kernel that a library has not tuned. It computes in fp32,
    whatever the form.

        frames   |--------------- padding + T + padding ---------------|
        blocks   |---- size ----|
                           |---- size ----|            each begins with what the kernel
        outputs        |-- step --|-- step --|         needs of the one before it
    """

    how = "by Fourier transforms"

    def prepare(self, weight, bias, dtype):
        (kernel_size,) = self.kernel_size
        self.size = 2 ** (2 * kernel_size - 1).bit_length()  # frames of a block
        self.step = self.size - kernel_size + 1  # outputs of a block
        self.spectrum = spectrum_of(weight, self.groups, self.size)
        self.bias = bias

    def outputs(self, frames):
        (padding,), (stride,), frames = self.padding, self.stride, frames.float()
        batch_size, num_frames, dim = frames.shape
        num_outputs = self.num_outputs(num_frames)
        num_blocks = -(-num_outputs // self.step)
        missing = num_blocks * self.step - num_outputs
        padded = F.pad(frames, (0, 0, padding, padding + missing))
        # B x blocks x C x size -> B * blocks x size x C
        blocks = padded.unfold(1, self.size, self.step).transpose(2, 3).flatten(0, 1)
        spectra = torch.fft.rfft(blocks, dim=1)  # (B * blocks, frequencies, C)
        products = torch.bmm(  # one for each frequency and group: B * blocks x C / G x C' / G
            spectra.reshape(len(blocks), -1, dim // self.groups).transpose(0, 1), self.spectrum
        )
        # frequencies x G x B * blocks x C' / G; the first outputs of a block are the one's before
        products = products.unflatten(0, (-1, self.groups))
        outputs = torch.fft.irfft(products, n=self.size, dim=0)[-self.step :]
        outputs = outputs.unflatten(2, (batch_size, num_blocks))
        # step x G x B x blocks x C' / G -> B x blocks * step x C'
        outputs = outputs.permute(2, 3, 0, 1, 4).reshape(batch_size, -1, self.out_channels)
        return outputs[:, :num_outputs:stride] + self.bias


class BandedConv1d(LongConv1d):
    """A convolution with a long kernel as products of windows of frames with a banded matrix (the
    convolution's, of Toeplitz), one for each group.

    In half precision cuDNN 9 has kernels that do without tensor cores for wav2vec 2.0 base's groups
    of 48 channels: on an H100, 12 ms for 400 frames, in place of 0.06.

        frames   |--------------- padding + T + padding ---------------|
        windows  |-- kernel + STEP - 1 --|
                    |-- kernel + STEP - 1 --|     times the matrix: STEP outputs of all channels
                       |-- kernel + STEP - 1 --|
    """

    how = "with a banded matrix"
    STEP = 8  # a larger one has larger products, and a larger matrix

    def prepare(self, weight, bias, dtype):
        self.matrix = banded(weight.to(dtype), self.groups, self.STEP)
        self.bias = bias.to(dtype).view(self.groups, 1, -1).repeat(1, 1, self.STEP)

    def outputs(self, frames):
        (padding,), (kernel_size,), (stride,) = self.padding, self.kernel_size, self.stride
        batch_size, num_frames, _ = frames.shape
        num_outputs = self.num_outputs(num_frames)
        num_windows = -(-num_outputs // self.STEP)
        size = kernel_size + self.STEP - 1
        missing = num_windows * self.STEP + kernel_size - 1 - num_frames - padding
        padded = F.pad(frames.to(self.matrix.dtype), (0, 0, padding, missing))
        # B x T x C -> G x B x T x C / G -> G x B x windows x C / G x size
        grouped = padded.unflatten(2, (self.groups, -1)).permute(2, 0, 1, 3)
        windows = grouped.unfold(2, size, self.STEP).transpose(3, 4)
        windows = windows.reshape(self.groups, batch_size * num_windows, -1)
        products = torch.baddbmm(self.bias, windows, self.matrix)  # rounded once
        # G x B * windows x STEP * C' / G -> B x windows * STEP x C'
        products = products.view(self.groups, batch_size, num_windows * self.STEP, -1)
        outputs = products[:, :, :num_outputs:stride].permute(1, 2, 0, 3).flatten(2)
        return outputs.to(frames.dtype)


class Int8Conv1d(LongConv1d):
    """With int8 weights and inputs of a byte, where int8 is C: a product of windows of frames for
    each group. Levels have one scale for an utterance's frames in a group.

    The spectra that Fourier transforms are multiplied with are eight times the weights in fp32, and
    come from memory. Two threads of an Intel Xeon (Cascade Lake) took 0.2 to 0.35 of their time for
    up to 50 frames, 0.4 for 133, 0.6 for 400 and 0.75 to 1.05 for 3000 (768 and 1024 channels). A
    base model took 0.92 of its time with them for 0.5 s, 0.96 for 1 s, 0.98 for 3 to 8 s and 1.01
    for 16 s with AVX2 alone (AMD EPYC, one thread).
    """

    how = "in int8"

    def prepare(self, weight, bias, dtype):
        windows = weight.transpose(1, 2).flatten(1)  # (C', K * C / G)
        parts = zip(windows.chunk(self.groups), bias.chunk(self.groups), strict=True)
        product = compiled_product_here()
        if product is None:
            raise RuntimeError("a convolution in int8 where nothing was compiled for it")
        products = [product(*part, of_gelus=False) for part in parts]
        self.in_c = GroupedConvInC([product.linear for product in products])

    def outputs(self, frames):
        (kernel_size,), (padding,), (stride,) = self.kernel_size, self.padding, self.stride
        shape = kernel_size, stride, padding, self.num_outputs(frames.size(1), stride)
        return torch.stack([self.in_c.outputs(each, *shape) for each in frames])


def banded(weight: torch.Tensor, groups: int, step: int) -> torch.Tensor:
    """(G, (K + step - 1) * C / G, step * C' / G): the kernels of a convolution, each output's one
    frame further than the one before.

    Args:
        weight: (C', C / G, K)
    """
    _, num_inputs, kernel_size = weight.shape
    kernels = weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)  # G x K x C / G x C' / G
    size = kernel_size + step - 1
    matrix = weight.new_zeros(groups, size, num_inputs, step, kernels.size(-1))
    for output in range(step):
        matrix[:, output : output + kernel_size, :, output] = kernels
    return matrix.flatten(3).flatten(1, 2)


def spectrum_of(weight, groups: int, size: int):
    """Spectra (frequencies * G, C / G, C' / G) of the kernels of a convolution, ordered as products
    with spectra of frames need them.

    Args:
        weight: (C', C / G, K)
        size: of the transform, in frames
    """
    # a convolution of networks is a correlation: the kernels turn round
    spectra = torch.fft.rfft(weight.double().flip(-1), n=size)
    spectra = spectra.unflatten(0, (groups, -1)).permute(3, 0, 2, 1)
    return spectra.flatten(0, 1).to(torch.complex64).contiguous()
