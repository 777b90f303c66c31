"""The CNN front-end in channels-last form, for CPUs: convolutions as matrix products over windows
of frames, piece by piece so that what passes between them stays in the cache, and no work for
padding."""

import torch
from fairseq.modules.fp32_group_norm import Fp32GroupNorm
from torch import nn

from fairseq_speedup.frontend.cnn import conv_layers_of
from fairseq_speedup.inference.kernels.rows import convolve_gelu
from fairseq_speedup.inference.linear import linear_of
from fairseq_speedup.lengths import (
    conv_length,
    conv_stack_length,
    needed_conv_stack_length,
    padding_mask_of,
)

PIECE_FRAMES = 100  # of the front-end's output, 2 seconds at the CNN's 20 ms


def as_linear(conv: nn.Conv1d) -> nn.Linear:
    """The linear layer that gives of a window of frames (kernel_size * channels) what the
    convolution gives."""
    weight = conv.weight.detach().transpose(1, 2).flatten(1)  # (C', C, K) -> (C', K * C)
    return linear_of(weight, conv.bias)


def windows_of(frames: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """(T, C), contiguous, -> (T', kernel_size * C), a view"""
    num_frames, dim = frames.shape
    num_windows = conv_length(num_frames, kernel_size, stride)
    return frames.as_strided((num_windows, kernel_size * dim), (stride * dim, 1))


def fold_group_norm(weight, norm, mean, covariance):
    """Weights (..., C, K) and bias (..., C) that give of a window what a convolution and the group
    norm after it give, one group a channel.

    Args:
        weight: (C, K) of the convolution; a bias would go out with the mean
        norm: the group norm
        mean, covariance: (..., K) and (..., K, K), float64, of the windows it is taken over
    """
    dtype, weight = weight.dtype, weight.double()
    variance = ((weight @ covariance) * weight).sum(dim=-1)
    scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.double() - scale * (weight @ mean[..., None])[..., 0]
    return (weight * scale[..., None]).to(dtype), shift.to(dtype)


def fold_over_valid(weight, norm, windows, num_valid):
    """As :func:`fold_group_norm`, over the first ``num_valid`` (B,) of the windows (B, T, K).

    Returns:
        weights (B, C, K) and bias (B, C)
    """
    padding = padding_mask_of(num_valid, windows.size(1))[:, :, None]
    count = num_valid[:, None, None]
    mean = windows.masked_fill(padding, 0).sum(dim=1, keepdim=True) / count
    centred = (windows - mean).masked_fill(padding, 0)
    covariance = centred.transpose(1, 2) @ centred / count
    return fold_group_norm(weight, norm, mean[:, 0], covariance)


def even_size(num_frames: int, about: int) -> int:
    """Frames of each piece, ``about`` that many, so that the last is not much shorter."""
    num_pieces = max(1, round(num_frames / about))
    return max(1, -(-num_frames // num_pieces))


class ChannelsLastCnn(nn.Module):
    """(B, S) -> (B, C, T), what fairseq's ``ConvFeatureExtractionModel`` gives; zero at padding,
    which is not computed.

    A group norm after the first convolution, one group a channel over time, is folded into that
    convolution's weights, for each utterance its own: mean and variance of ``w x`` over all windows
    x follow from the windows' mean and covariance, 10 by 10 numbers, before anything is convolved.

    Args:
        cnn: fairseq's, whose weights it takes
        linear: builds the linear layers of the inference form
        masked: the group norm leaves padding out, see MaskedGroupNorm
    """

    needs_lengths = True

    def __init__(self, cnn, linear, masked: bool):
        super().__init__()
        self.layers = conv_layers_of(cnn)  # (dim, kernel_size, stride)
        first, *others = cnn.conv_layers
        self.first = (as_linear(first[0]),)  # in a tuple: it stays as it is in every form
        self.group_norm = first[2] if isinstance(first[2], Fp32GroupNorm) else None
        self.first_weights = None if self.group_norm is not None else _as_c_reads(*self.first)
        self.masked = masked
        self.linears = nn.ModuleList(
            [linear(as_linear(block[0]), of_gelus=True) for block in others]
        )
        self.norms = [
            block[2][1] if isinstance(block[2], nn.Sequential) else None
            for block in cnn.conv_layers
        ]

    def forward(self, waveform, lengths):
        """
        Args:
            waveform: (B, S)
            lengths: (B,), valid samples
        """
        num_frames = conv_stack_length(waveform.size(1), self.layers)
        dim, _, _ = self.layers[-1]
        frames = waveform.new_zeros(waveform.size(0), num_frames, dim)
        for utterance, length, out in zip(waveform, lengths.tolist(), frames, strict=True):
            normalised_over = utterance[:length] if self.masked else utterance
            weight, bias = self._first_weights(normalised_over)
            length_frames = conv_stack_length(length, self.layers)
            size = even_size(length_frames, PIECE_FRAMES)
            for start in range(0, length_frames, size):
                piece = self._piece(utterance[:length], start, size)
                values = self._run(piece, weight, bias)
                out[start : start + len(values)] = values
        return frames.transpose(1, 2)

    def _piece(self, waveform, start: int, num_frames: int):
        """Samples (S',) that give ``num_frames`` frames, or what is left, from frame ``start``."""
        stride = 1
        for _, _, each in self.layers:
            stride *= each
        needed = needed_conv_stack_length(num_frames, self.layers)
        return waveform[start * stride : start * stride + needed]

    def _run(self, samples, weight, bias):
        """(S',) -> (T', C)"""
        _, _, stride = self.layers[0]
        frames = convolve_gelu(samples, stride, weight, bias, self.norms[0])
        for position, linear in enumerate(self.linears, start=1):
            _, kernel_size, stride = self.layers[position]
            frames = linear.gelu(windows_of(frames, kernel_size, stride), self.norms[position])
        return frames

    def _first_weights(self, waveform):
        """Weights (K, C) and bias (C,) of the first convolution for one utterance (S,)."""
        if self.first_weights is not None:
            return self.first_weights
        (first,) = self.first
        _, kernel_size, stride = self.layers[0]
        windows = waveform.double().unfold(0, kernel_size, stride)
        mean = windows.mean(dim=0)
        centred = windows - mean
        covariance = centred.T @ centred / len(windows)
        weight, shift = fold_group_norm(first.weight, self.group_norm, mean, covariance)
        return weight.T.contiguous(), shift


def _as_c_reads(linear: nn.Linear):
    """Weights (K, C) and bias (C,)."""
    weight, bias = linear.weight.detach(), linear.bias
    return weight.T.contiguous(), weight.new_zeros(len(weight)) if bias is None else bias.detach()
