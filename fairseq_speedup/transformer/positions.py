"""Positional convolutions: one in wav2vec 2.0, HuBERT and WavLM, several in a row in data2vec."""

import torch
from torch import nn


def positions_of(
    pos_conv: nn.Module, frames: torch.Tensor, padding_mask: torch.Tensor | None, masked: bool
) -> torch.Tensor:
    """What is added to the frames.

    Args:
        pos_conv: fairseq's; its last convolution's stride is that of pooling
        frames: (B, T, C), zero at padding
        padding_mask: (B, T), True at padding, or None where there is none
        masked: keep padding zero between convolutions in a row too. Each ends with a layer norm, so
            that in fairseq what lies past an utterance is no longer zero for the next one, and
            reaches the utterance's last frames
    Returns:
        (B, T / stride, C)
    """
    frames = frames.transpose(1, 2)  # B x T x C -> B x C x T
    if not isinstance(pos_conv[0], nn.Sequential):
        return pos_conv(frames).transpose(1, 2)
    for position, block in enumerate(pos_conv):
        if position > 0 and masked and padding_mask is not None:
            frames = frames.masked_fill(padding_mask[:, None], 0)
        frames = block(frames)
    return frames.transpose(1, 2)
