"""Positional convolutions, several in a row, as data2vec has them."""

import torch.nn.functional as F
from torch import nn


def mask_between_positions(encoder) -> None:
    """Keeps padding zero between the positional convolutions of fairseq's transformer, through
    hooks. Each ends with a layer norm, so that in fairseq what lies past an utterance is no longer
    zero for the next one, and reaches the utterance's last frames."""
    blocks = [block for block in encoder.pos_conv or () if isinstance(block, nn.Sequential)]
    if len(blocks) < 2:
        return
    state = {}

    def before_encoder(encoder, args, kwargs):
        mask = kwargs.get("padding_mask")
        frames = args[0]  # (B, T, C)
        state["mask"] = frames.new_zeros(frames.shape[:2]).bool() if mask is None else mask

    def before_block(block, args):
        (frames,) = args  # (B, C, T), longer where pooling has rounded up to whole windows
        missing = frames.size(2) - state["mask"].size(1)
        mask = F.pad(state["mask"], (0, missing), value=True)
        return frames.masked_fill(mask[:, None, :], 0)

    encoder.register_forward_pre_hook(before_encoder, with_kwargs=True)
    for block in blocks[1:]:
        block.register_forward_pre_hook(before_block)
