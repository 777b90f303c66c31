"""Front-ends in a form that can be exported: frames are rows, convolutions are matrix products over
windows of them, and lengths are tensors throughout."""

import torch
import torch.nn.functional as F
from fairseq.modules.fp32_group_norm import Fp32GroupNorm
from torch import nn

from fairseq_speedup.frontend.cnn import conv_layers_of
from fairseq_speedup.frontend.fbank import HOP_SAMPLES, WINDOW_SAMPLES
from fairseq_speedup.inference.cnn import as_linear, fold_over_valid
from fairseq_speedup.lengths import conv_length, conv_stack_length, pooled_length


def resized(frames: torch.Tensor, num_frames) -> torch.Tensor:
    """(B, T, C) -> (B, num_frames, C), cut or with zeros at the end"""
    return F.pad(frames, (0, 0, 0, num_frames - frames.size(1)))  # a negative count cuts


def blocked_length(num_windows, kernel_size: int, stride: int):
    """Frames that ``num_windows`` windows take when frames come in blocks of ``stride``."""
    return (num_windows + pooled_length(kernel_size, stride) - 1) * stride


def blocked_windows(frames: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Windows of a convolution over whole blocks of ``stride`` frames.

    Args:
        frames: (B, T, C), T being ``blocked_length`` of T'
    Returns:
        (B, T', kernel_size * C)
    """
    dim = frames.size(2)
    blocks = frames.reshape(frames.size(0), -1, stride * dim)
    num_windows = blocks.size(1) + 1 - pooled_length(kernel_size, stride)
    parts = []
    for first in range(0, kernel_size, stride):
        start = first // stride
        part = blocks[:, start : start + num_windows, : (kernel_size - first) * dim]
        parts.append(part)
    return torch.cat(parts, dim=2) if len(parts) > 1 else blocks


class ExportableCnn(nn.Module):
    """(B, S) -> (B, T, C), what fairseq's ``ConvFeatureExtractionModel`` gives, transposed.

    The waveform is cut or filled up once, so that every convolution is given whole blocks of its
    stride and nothing is moved before most of its windows are read.

    Args:
        cnn: fairseq's
        masked: its group norm leaves padding out, see MaskedGroupNorm
    """

    def __init__(self, cnn, masked: bool):
        super().__init__()
        self.layers = conv_layers_of(cnn)  # (dim, kernel_size, stride)
        self.linears = nn.ModuleList([as_linear(block[0]) for block in cnn.conv_layers])
        norms = [block[2] for block in cnn.conv_layers]
        self.group_norm = norms[0] if isinstance(norms[0], Fp32GroupNorm) else None
        self.layer_norms = nn.ModuleList(
            [norm[1] if isinstance(norm, nn.Sequential) else nn.Identity() for norm in norms]
        )
        self.masked = masked

    def forward(self, waveform, lengths):
        """
        Args:
            waveform: (B, S)
            lengths: (B,), valid samples
        Returns:
            frames (B, T, C) and their valid counts (B,)
        """
        needed = conv_stack_length(waveform.size(1), self.layers)
        for _, kernel_size, stride in reversed(self.layers):
            needed = blocked_length(needed, kernel_size, stride)
        samples = waveform[:, :, None]
        frames = resized(samples, needed)
        for position, (_, kernel_size, stride) in enumerate(self.layers):
            windows = blocked_windows(frames, kernel_size, stride)
            if position == 0 and self.group_norm is not None:
                weight, bias = self._first_weights(samples, lengths)
                frames = windows @ weight + bias
            else:
                frames = self.layer_norms[position](self.linears[position](windows))
            frames = F.gelu(frames)
        return frames, conv_stack_length(lengths, self.layers)

    def _first_weights(self, samples, lengths):
        """Weights (B, K, C) and bias (B, 1, C) of the first convolution, with its group norm over
        all of its valid frames, also those that no frame at the end is made of.

        Args:
            samples: (B, S, 1)
            lengths: (B,), valid ones
        """
        _, kernel_size, stride = self.layers[0]
        num_windows = conv_length(samples.size(1), kernel_size, stride)
        needed = blocked_length(num_windows, kernel_size, stride)
        windows = blocked_windows(resized(samples, needed), kernel_size, stride).double()
        num_samples = lengths if self.masked else torch.zeros_like(lengths) + samples.size(1)
        count = conv_length(num_samples, kernel_size, stride)
        weight = self.linears[0].weight
        weight, bias = fold_over_valid(weight, self.group_norm, windows, count)
        return weight.transpose(1, 2), bias[:, None]


class ExportableFbank(nn.Module):
    """(B, S) -> (B, T, C), what FbankFrontEnd gives, transposed.

    Args:
        fbank: a FbankFrontEnd
    """

    def __init__(self, fbank):
        super().__init__()
        self.fbank = fbank

    def forward(self, waveform, lengths):
        """See ExportableCnn."""
        num_windows = conv_length(waveform.size(1), WINDOW_SAMPLES, HOP_SAMPLES)
        needed = blocked_length(num_windows, WINDOW_SAMPLES, HOP_SAMPLES)
        samples = resized(waveform[:, :, None], needed)
        windows = blocked_windows(samples, WINDOW_SAMPLES, HOP_SAMPLES)
        log_mel = self.fbank.log_mel
        energies = log_mel.normalise(log_mel.energies_of(windows))
        lengths = conv_length(lengths, WINDOW_SAMPLES, HOP_SAMPLES)
        frames, lengths = self.fbank.convolve(energies, lengths)
        return frames.transpose(1, 2), lengths  # B x C x T -> B x T x C
