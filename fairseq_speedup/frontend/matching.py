"""The pretrained CNN as a teacher of its replacement (Front-End Adapter, arXiv 2302.09331)."""

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_speedup.frames.pooling import MeanPool
from fairseq_speedup.frontend.cnn import CnnFrontEnd, MaskedCnn, run_cnn
from fairseq_speedup.lengths import multiple_length, padding_mask_of


class CnnTeacher:
    """What the transformer was given before the front-end was replaced.

    Not a module: it is needed while training alone and is no part of the checkpoint.

    Args:
        feature_extractor: fairseq's convolutional front-end, pretrained
        stride: frames of it that the replacement has one for
    """

    def __init__(self, feature_extractor, stride: int):
        self.feature_extractor = MaskedCnn.of(feature_extractor).eval().requires_grad_(False)
        self.pool = MeanPool(0, stride)

    def apply(self, function) -> None:
        """Follows the model to its device and precision."""
        self.feature_extractor._apply(function)

    @torch.no_grad()
    def __call__(self, waveform, num_samples, layer_norm):
        """
        Args:
            waveform: (B, S)
            num_samples: (B,), valid ones
            layer_norm: the model's, over the front-end's channels
        Returns:
            frames (B, T, C), normalised, each the mean of ``stride`` frames of the CNN
        """
        frames = normalised(run_cnn(self.feature_extractor, waveform, num_samples), layer_norm)
        lengths = CnnFrontEnd(self.feature_extractor).output_lengths(num_samples)
        padding = padding_mask_of(lengths, frames.size(1))
        frames = frames.masked_fill(padding[:, :, None], 0)
        missing = multiple_length(frames.size(1), self.pool.factor) - frames.size(1)
        return self.pool(F.pad(frames, (0, 0, 0, missing)), lengths)


def normalised(frames, layer_norm):
    """Front-end's frames (B, C, T) -> (B, T, C) as the transformer's projection is given them; the
    weights of ``layer_norm`` get no gradient."""
    frames = frames.transpose(1, 2)
    if isinstance(layer_norm, nn.Identity):
        return frames
    weight, bias = layer_norm.weight.detach(), layer_norm.bias.detach()
    return F.layer_norm(frames, layer_norm.normalized_shape, weight, bias, layer_norm.eps)
