"""A reduction of one's own, in a user directory of one's own: attentive frame pooling.

    fairseq-hydra-train ... common.user_dir=examples/extending/attentive_pool \
        model.frame_pool=2 model.frame_pool_method=attentive
"""

import torch
from torch import nn

import fairseq_speedup  # noqa: F401, registers the plugin's models, task and criterions
from fairseq_speedup.frames import FRAME_POOLS, MeanPool
from fairseq_speedup.lengths import padding_mask_of


@FRAME_POOLS.register("attentive")
class AttentivePool(MeanPool):
    """Each window's frames, weighted by a learned score: begins as their mean."""

    def __init__(self, dim: int, factor: int):
        super().__init__(dim, factor)
        self.score = nn.Linear(dim, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, frames, lengths):
        """(B, T, C), T a multiple of the factor, and valid frames (B,) -> (B, T / factor, C)"""
        padding = padding_mask_of(lengths, frames.size(1))
        scores = self.score(frames).masked_fill(padding[:, :, None], torch.finfo(frames.dtype).min)
        windows = frames.reshape(frames.size(0), -1, self.factor, frames.size(2))
        weights = scores.reshape(frames.size(0), -1, self.factor).softmax(dim=2)
        return torch.einsum("bwk,bwkc->bwc", weights, windows)

    def macs_per_window(self) -> int:
        return 2 * self.factor * self.score.in_features  # the scores, and the weighted sum
