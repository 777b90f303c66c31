"""Can CTC align these labels at all? Each needs a frame, and so does the blank between repeats."""

import itertools
import logging
from dataclasses import dataclass

import numpy as np

logger = logging.getLogger(__name__)


class InfeasibleCtcError(ValueError):
    """Most utterances have fewer output frames than CTC needs."""


def needed_frames(labels: list) -> int:
    """The fewest frames from which CTC can emit ``labels``: their number plus adjacent repeats."""
    return len(labels) + sum(left == right for left, right in itertools.pairwise(labels))


@dataclass
class Feasibility:
    """How many of ``num_utterances`` have fewer output frames than :func:`needed_frames`."""

    num_utterances: int
    num_infeasible: int
    needed_upsampling: int = 1  # times as many frames would be enough for every utterance

    @property
    def percent(self) -> float:
        return 100 * self.num_infeasible / max(1, self.num_utterances)


def check_feasibility(num_frames: np.ndarray, labels: list[list]) -> Feasibility:
    """
    Args:
        num_frames: output frames of each utterance
        labels: label symbols of each utterance
    """
    needed = np.array([needed_frames(line) for line in labels], dtype=int)
    num_frames = np.asarray(num_frames)
    upsampling = -(-needed // np.maximum(num_frames, 1))
    return Feasibility(
        len(labels), int((num_frames < needed).sum()), int(upsampling.max(initial=1))
    )


def report_feasibility(split: str, found: Feasibility, allow: bool, zero_infinity: bool) -> None:
    """Logs what was found; more than half is an error unless ``allow``."""
    message = (
        f"CTC feasibility of {split}: {found.num_infeasible} of {found.num_utterances} utterances "
        f"({found.percent:.1f} %) have fewer output frames than labels plus adjacent repeats"
    )
    if found.num_infeasible == 0:
        logger.info(message)
        return
    message += (
        f"; CTC cannot learn from them. Remedies: {found.needed_upsampling} times the "
        "model.logit_upsample (enough for all), subword labels (task.labels=spm), a smaller "
        "model.downsample_factor, frontend_frame_ms or merge_ratio"
    )
    if not zero_infinity:
        message += "; their loss is infinite: set criterion.zero_infinity=true"
    if found.percent > 50 and not allow:
        raise InfeasibleCtcError(
            message + "; or task.allow_infeasible_ctc=true to train all the same"
        )
    logger.warning(message)
