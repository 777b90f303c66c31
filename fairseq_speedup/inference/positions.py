"""The positional convolution in its inference form."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import remove_weight_norm

from fairseq_speedup.lengths import conv_length


class FourierConv1d(nn.Conv1d):
    """A convolution with a long kernel as products of spectra, block by block (overlap-save).

    Of wav2vec 2.0's kernel of 128 frames it needs a thirtieth of the multiplications; blocks have
    one size, so that no length meets a kernel that a library has not tuned. It computes in fp32,
    whatever the form. On GPUs it is the convolution that it was, in the form's type.

        frames   |--------------- padding + T + padding ---------------|
        blocks   |---- size ----|
                           |---- size ----|            each begins with what the kernel
        outputs        |-- step --|-- step --|         needs of the one before it
    """

    @classmethod
    def convert(cls, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        """Makes of ``conv`` one of these: others hold it, to choose its stride.

        Args:
            dtype: of the form, for GPUs
        """
        if hasattr(conv, "weight_g"):
            remove_weight_norm(conv)
        weight, bias = conv.weight.detach(), conv.bias.detach()
        del conv.weight, conv.bias
        conv.spectrum = None
        if weight.device.type == "cpu":
            (kernel_size,) = conv.kernel_size
            conv.size = 2 ** (2 * kernel_size - 1).bit_length()  # frames of a block
            conv.step = conv.size - kernel_size + 1  # outputs of a block
            conv.spectrum = spectrum_of(weight, conv.groups, conv.size)
        else:
            weight, bias = weight.to(dtype), bias.to(dtype)
            conv.weight = weight
        conv.bias = bias
        conv.__class__ = cls

    def forward(self, frames):
        """(B, C, T) -> (B, C', T')"""
        if self.spectrum is None:
            return F.conv1d(
                frames.to(self.weight.dtype),
                *(self.weight, self.bias, self.stride, self.padding),
                groups=self.groups,
            ).to(frames.dtype)
        (stride,) = self.stride
        return self._all(frames.float().transpose(1, 2))[:, ::stride].transpose(1, 2)

    def _all(self, frames):
        """(B, T, C) -> (B, T', C'), at stride 1."""
        (padding,), (kernel_size,) = self.padding, self.kernel_size
        batch_size, num_frames, dim = frames.shape
        num_outputs = conv_length(num_frames + 2 * padding, kernel_size, 1)
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
        return outputs[:, :num_outputs] + self.bias


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
