"""The pretrained convolutional front-end, which is fairseq's own: its lengths, its MACs, a
normalisation that leaves padding out, and how it stays as it is while what is before it learns."""

import torch
from fairseq.models.wav2vec.wav2vec2 import ConvFeatureExtractionModel
from fairseq.modules.fp32_group_norm import Fp32GroupNorm
from torch import nn

from fairseq_speedup.lengths import (
    FrameGrid,
    conv_length,
    conv_stack_length,
    needed_conv_stack_length,
    padding_mask_of,
)


def conv_layers_of(feature_extractor) -> list[tuple[int, int, int]]:
    """(dim, kernel_size, stride) of each convolution."""
    convolutions = [block[0] for block in feature_extractor.conv_layers]
    return [(conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convolutions]


class CnnFrontEnd:
    """
    Args:
        feature_extractor: fairseq's ``ConvFeatureExtractionModel``
    """

    def __init__(self, feature_extractor):
        self.conv_layers = conv_layers_of(feature_extractor)

    def output_lengths(self, lengths):
        """Frames of ``lengths`` samples (int, numpy array or tensor)."""
        return conv_stack_length(lengths, self.conv_layers)

    def needed_samples(self, length: int) -> int:
        """The fewest samples that give ``length`` frames."""
        return needed_conv_stack_length(length, self.conv_layers)

    def frame_grid(self, grid: FrameGrid) -> FrameGrid:
        """Where the frames lie, of samples that lie on ``grid``."""
        for _, kernel_size, stride in self.conv_layers:
            grid = grid.conv(kernel_size, stride)
        return grid

    def macs(self, lengths):
        """Multiply-accumulates for ``lengths`` samples."""
        macs, input_dim = 0, 1
        for dim, kernel_size, stride in self.conv_layers:
            lengths = conv_length(lengths, kernel_size, stride)
            macs = macs + lengths * dim * input_dim * kernel_size
            input_dim = dim
        return macs


class MaskedGroupNorm(Fp32GroupNorm):
    """The group norm of base models' CNN, one group a channel, over valid frames only. fairseq's
    takes its statistics over padding too, so that what an utterance gives depends on what it is
    batched with."""

    @classmethod
    def of(cls, norm: Fp32GroupNorm) -> "MaskedGroupNorm":
        """Takes the place of ``norm``, with its weights."""
        masked = cls.__new__(cls)
        masked.__dict__.update(norm.__dict__)
        return masked

    def forward(self, frames, lengths=None):
        """
        Args:
            frames: (B, C, T)
            lengths: (B,), valid ones; None where nothing is padded
        """
        if lengths is None or int(lengths.min()) == frames.size(2):
            return super().forward(frames)  # fairseq's own numbers
        values = frames.float()
        padding = padding_mask_of(lengths, frames.size(2))[:, None, :]  # (B, 1, T)
        count = lengths[:, None, None]
        mean = values.masked_fill(padding, 0).sum(dim=2, keepdim=True) / count
        centred = values - mean
        variance = centred.masked_fill(padding, 0).square().sum(dim=2, keepdim=True) / count
        normalised = centred * torch.rsqrt(variance + self.eps)
        normalised = normalised * self.weight.float()[:, None] + self.bias.float()[:, None]
        return normalised.to(frames.dtype)


class MaskedCnn(ConvFeatureExtractionModel):
    """fairseq's CNN, whose group norm leaves padding out."""

    needs_lengths = True

    @classmethod
    def of(cls, cnn: ConvFeatureExtractionModel) -> nn.Module:
        """Takes the place of ``cnn``, with its weights; one without group norms stays."""
        norms = [m for m in cnn.modules() if isinstance(m, Fp32GroupNorm)]
        if not norms:
            return cnn
        masked = cls.__new__(cls)
        masked.__dict__.update(cnn.__dict__)
        for block in masked.conv_layers:
            for position, module in enumerate(block):
                if isinstance(module, Fp32GroupNorm):
                    block[position] = MaskedGroupNorm.of(module)
        return masked

    def forward(self, waveform, lengths=None):
        """
        Args:
            waveform: (B, S)
            lengths: (B,), valid samples; None where nothing is padded
        Returns:
            frames (B, C, T)
        """
        frames = waveform[:, None]
        for block in self.conv_layers:
            for module in block:
                if isinstance(module, MaskedGroupNorm):
                    frames = module(frames, lengths)
                else:
                    frames = module(frames)
                if isinstance(module, nn.Conv1d) and lengths is not None:
                    lengths = conv_length(lengths, module.kernel_size[0], module.stride[0])
        return frames


def run_cnn(cnn: nn.Module, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Frames (B, C, T) of ``waveform`` (B, S), of which ``lengths`` (B,) samples are valid."""
    return cnn(waveform, lengths) if getattr(cnn, "needs_lengths", False) else cnn(waveform)


def let_gradient_through(w2v_model) -> bool:
    """To what learns before or within a CNN. With feature_grad_mult 0, the default of fine-tuning,
    fairseq runs it without autograd: then its weights are frozen by themselves instead.

    Returns:
        whether it is frozen so
    """
    if w2v_model.feature_grad_mult > 0:
        return False
    w2v_model.feature_grad_mult = 1.0
    w2v_model.feature_extractor.requires_grad_(False)
    return True
