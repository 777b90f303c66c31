"""The pretrained convolutional front-end, which is fairseq's own: its lengths, its MACs, and a
normalisation that leaves padding out."""

import torch
from fairseq.modules.fp32_group_norm import Fp32GroupNorm

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
    def into(cls, feature_extractor) -> "tuple[MaskedGroupNorm, ...]":
        """Takes the place of a CNN's group norms, with their weights: of one or of none."""
        placed = []
        for block in feature_extractor.conv_layers:
            for position, module in enumerate(block):
                if isinstance(module, Fp32GroupNorm):
                    masked = cls.__new__(cls)
                    masked.__dict__.update(module.__dict__)
                    masked.conv = (block[0],)  # in a tuple: it is the CNN's, not ours
                    masked.num_samples = None
                    block[position] = masked
                    placed.append(masked)
        return tuple(placed)

    def forward(self, frames):
        """
        Args:
            frames: (B, C, T), of utterances whose ``num_samples`` (B,) were set before
        """
        if self.num_samples is None:
            return super().forward(frames)
        (conv,) = self.conv
        lengths = conv_length(self.num_samples, conv.kernel_size[0], conv.stride[0])
        if int(lengths.min()) == frames.size(2):
            return super().forward(frames)  # nothing is padded: fairseq's own numbers
        values = frames.float()
        padding = padding_mask_of(lengths, frames.size(2))[:, None, :]  # (B, 1, T)
        count = lengths[:, None, None]
        mean = values.masked_fill(padding, 0).sum(dim=2, keepdim=True) / count
        centred = values - mean
        variance = centred.masked_fill(padding, 0).square().sum(dim=2, keepdim=True) / count
        normalised = centred * torch.rsqrt(variance + self.eps)
        normalised = normalised * self.weight.float()[:, None] + self.bias.float()[:, None]
        return normalised.to(frames.dtype)
