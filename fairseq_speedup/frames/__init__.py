"""Frame reduction: fewer frames between the front-end and the transformer, all of them after it."""

from fairseq_speedup.frames.masking import mask_short_utterances
from fairseq_speedup.frames.pooling import (
    FRAME_POOLS,
    FramePoolConfig,
    FrameReduction,
    MeanPool,
    check_frame_pool,
)

__all__ = [
    "FRAME_POOLS",
    "FramePoolConfig",
    "FrameReduction",
    "MeanPool",
    "check_frame_pool",
    "mask_short_utterances",
]
