"""The CNN front-end for GPUs: whole batches, channels last, and nothing that waits for a value."""

import torch
import torch.nn.functional as F
from fairseq.modules.fp32_group_norm import Fp32GroupNorm
from torch import nn

from fairseq_speedup.frontend.cnn import conv_layers_of
from fairseq_speedup.inference.cnn import fold_over_valid
from fairseq_speedup.lengths import conv_length


class BatchedCnn(nn.Module):
    """(B, S) -> (B, C, T), what fairseq's ``ConvFeatureExtractionModel`` gives, in the type that it
    computes in. Between the convolutions frames lie in memory as (B, T, C), so that layer norms and
    tensor cores read rows.

    A group norm after the first convolution is folded into its weights, for each utterance its own;
    see :class:`ChannelsLastCnn`.

    Args:
        cnn: fairseq's, whose weights it takes
        dtype: to compute in
        masked: the group norm leaves padding out, see MaskedGroupNorm
    """

    needs_lengths = True

    def __init__(self, cnn, dtype: torch.dtype, masked: bool):
        super().__init__()
        self.layers = conv_layers_of(cnn)  # (dim, kernel_size, stride)
        self.dtype = dtype
        self.masked = masked
        norms = [block[2] for block in cnn.conv_layers]
        self.group_norm = norms[0] if isinstance(norms[0], Fp32GroupNorm) else None
        self.norms = [norm[1] if isinstance(norm, nn.Sequential) else None for norm in norms]
        convolutions = [block[0] for block in cnn.conv_layers]
        # no buffers: the first is folded in float32, the others are ready as they are
        self.first = convolutions[0].weight.detach()[:, 0]  # (C, K)
        self.first_weight = self.first.T.to(dtype)
        self.weights = [
            conv.weight.detach().to(dtype)[:, :, None].contiguous(memory_format=torch.channels_last)
            for conv in convolutions[1:]
        ]
        self.biases = [None if c.bias is None else c.bias.detach().to(dtype) for c in convolutions]

    def forward(self, waveform, lengths):
        """
        Args:
            waveform: (B, S)
            lengths: (B,), valid samples
        """
        frames = F.gelu(self._normalised(0, self._first(waveform, lengths)))
        for position, weight in enumerate(self.weights, start=1):
            _, _, stride = self.layers[position]
            # B x T x C -> B x C x 1 x T, channels last in memory
            rows = frames.transpose(1, 2)[:, :, None]
            rows = F.conv2d(rows, weight, self.biases[position], stride=(1, stride))
            frames = F.gelu(self._normalised(position, rows[:, :, 0].transpose(1, 2)))
        return frames.transpose(1, 2)

    def _first(self, waveform, lengths):
        """(B, S) -> (B, T, C)"""
        _, kernel_size, stride = self.layers[0]
        windows = waveform.float().unfold(1, kernel_size, stride)  # (B, T, K)
        if self.group_norm is None:
            frames = windows.to(self.dtype) @ self.first_weight
            return frames if self.biases[0] is None else frames + self.biases[0]
        if not self.masked:
            lengths = torch.full_like(lengths, waveform.size(1))
        num_valid = conv_length(lengths, kernel_size, stride)
        weight, bias = fold_over_valid(self.first, self.group_norm, windows.double(), num_valid)
        weight, bias = weight.transpose(1, 2).to(self.dtype), bias[:, None].to(self.dtype)
        return torch.baddbmm(bias, windows.to(self.dtype), weight)

    def _normalised(self, position: int, frames):
        norm = self.norms[position]
        if norm is None:
            return frames
        weight, bias = norm.weight.to(self.dtype), norm.bias.to(self.dtype)
        return F.layer_norm(frames, norm.normalized_shape, weight, bias, norm.eps)
