"""A reduction of one's own whose lengths depend on what is said: frames that hardly differ from the
one before them go no further.

    fairseq-hydra-train ... common.user_dir=examples/extending/steady_frames \
        model.drop_frames=steady model.drop_layers="'3,6'" model.drop_threshold=0.98
"""

import torch
import torch.nn.functional as F

import fairseq_speedup  # noqa: F401, registers the plugin's models, task and criterions
from fairseq_speedup.transformer.frame_dropping import FRAME_DROPS, FrameDrop


def steady_frames(*, hidden, threshold: float, **unused) -> torch.Tensor:
    """Frames (T, A) whose cosine similarity to the one before is above ``threshold``, of hidden
    states (T, A, C); not two in a row."""
    similarity = F.cosine_similarity(hidden[1:].float(), hidden[:-1].float(), dim=-1)
    steady = F.pad(similarity > threshold, (0, 0, 1, 0))
    odd = torch.arange(steady.size(0), device=steady.device)[:, None] % 2 == 1
    return steady & odd


FRAME_DROPS["steady"] = FrameDrop(steady_frames)
