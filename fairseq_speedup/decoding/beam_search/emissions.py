"""Log-probabilities on their way to a beam search: on the CPU, without sure blanks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Emission:
    """One utterance.

    log_probs: (T', V) in nats, of the frames that are searched
    frames: (T',), which frames of the utterance they are
    num_frames: of the utterance
    skipped_score: log-probability of the blanks that were left out
    """

    log_probs: np.ndarray
    frames: np.ndarray
    num_frames: int
    skipped_score: float = 0.0


def emissions_of(
    log_probs: torch.Tensor,
    lengths: torch.Tensor,
    blank: int,
    unspoken: Sequence[int] = (),
    blank_skip_threshold: float = 1.0,
) -> list[Emission]:
    """
    Args:
        log_probs: (T, B, V)
        lengths: (B,), valid frames
        blank: index of the blank
        unspoken: labels that no transcript has; they get no probability
        blank_skip_threshold: see :func:`skip_blanks`; 1 skips nothing
    """
    # T x B x V -> B x T x V: one copy for the whole batch, also where it would do without
    copied = {"copy": True, "memory_format": torch.contiguous_format}
    batch = log_probs.transpose(0, 1).to("cpu", torch.float32, **copied).numpy()
    batch[:, :, list(unspoken)] = -np.inf
    emissions = []
    for utterance, length in zip(batch, lengths.tolist(), strict=True):
        emission = Emission(utterance[:length], np.arange(length), length)
        if blank_skip_threshold < 1:
            emission = skip_blanks(emission, blank, blank_skip_threshold)
        emissions.append(emission)
    return emissions


def skip_blanks(emission: Emission, blank: int, threshold: float) -> Emission:
    """Takes frames that are surely blank for blank: of each run of them one frame is left, in which
    nothing but the blank has a probability. What is found keeps its score: the log-probabilities
    of the blanks left out are added to it.

    Args:
        threshold: a frame is surely blank where the blank's probability is this or more
    """
    blanks = emission.log_probs[:, blank]
    sure = blanks >= np.log(threshold)
    left_out = sure.copy()
    left_out[1:] &= sure[:-1]
    left_out[:1] = False
    kept = emission.log_probs[~left_out]
    only_blank = sure[~left_out]
    scores = kept[only_blank, blank]
    kept[only_blank] = -np.inf
    kept[only_blank, blank] = scores
    return Emission(
        kept,
        emission.frames[~left_out],
        emission.num_frames,
        emission.skipped_score + float(blanks[left_out].sum()),
    )
