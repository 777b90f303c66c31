"""fairseq's masking while training, also of utterances that have too few frames for its spans.

``compute_mask_indices`` ends the training where its spans cover a whole utterance, as two spans of
10 frames do for 12 frames: 0.25 s as they are, 0.75 s with a third of the frames. It ends it, too,
where no span is drawn, which happens in channels: they have no least number of spans.
"""

from types import FunctionType, MethodType

import numpy as np
from fairseq.models.wav2vec import wav2vec2

from fairseq_speedup.lengths import lengths_of

fairseq_mask_indices = wav2vec2.compute_mask_indices
# how it ends: the whole is masked, or nothing; or several spans of random length are all empty
FAILURES = (ValueError, IndexError)


def mask_short_utterances(w2v_model: wav2vec2.Wav2Vec2Model) -> None:
    """Has a model, in place, mask with :func:`compute_mask_indices`."""
    w2v_model.apply_mask = MethodType(_apply_mask, w2v_model)


def compute_mask_indices(
    shape, padding_mask, mask_prob: float, mask_length: int, *kind, min_masks: int = 0, **options
):
    """fairseq's, and nothing but that for utterances in which it cannot fail. The others have no
    part in ``require_same_masks``, and are masked as :func:`_mask_one` says.

    Args:
        shape: (B, T)
        padding_mask: (B, T), True at padding, or None
        mask_prob: share of the frames that spans would cover if none overlapped
        mask_length: frames of a span
        kind, options: see there
        min_masks: spans at least
    Returns:
        mask (B, T)
    """

    def draw(shape, padding_mask, mask_prob, mask_length, min_masks):
        return fairseq_mask_indices(
            shape, padding_mask, mask_prob, mask_length, *kind, min_masks=min_masks, **options
        )

    mask = np.full(shape, False)
    sizes = np.full(shape[0], shape[1])
    if padding_mask is not None:
        sizes = lengths_of(padding_mask, padding_mask).cpu().numpy()
    safe = np.array([_cannot_fail(int(size), mask_prob, mask_length, min_masks) for size in sizes])
    if safe.any():
        padding = None if padding_mask is None else padding_mask[safe.tolist()]
        try:
            mask[safe] = draw(
                (int(safe.sum()), shape[1]), padding, mask_prob, mask_length, min_masks
            )
        except FAILURES:  # spans of random length happened to cover one, or all to be empty
            safe[:] = False
    for row in np.flatnonzero(~safe):
        size = int(sizes[row])
        mask[row, :size] = _mask_one(draw, size, mask_prob, mask_length, min_masks)
    return mask


def _spans_fit(size: int, mask_prob: float, mask_length: int, min_masks: int) -> bool:
    """Whether fairseq's spans can never cover an utterance of ``size`` frames."""
    most = max(min_masks, int(mask_prob * size / mask_length) + 1)  # it rounds up at random
    return size - mask_length > most


def _cannot_fail(size: int, mask_prob: float, mask_length: int, min_masks: int) -> bool:
    drawn = min_masks > 0 or mask_prob * size >= mask_length  # one span at least
    return drawn and _spans_fit(size, mask_prob, mask_length, min_masks)


def _mask_one(draw, size: int, mask_prob: float, mask_length: int, min_masks: int) -> np.ndarray:
    """Mask (T,) of one utterance. Spans that do not fit are so much shorter that together they have
    no more than ``mask_prob`` of the frames; where that is less than a frame for each, nothing is
    masked."""
    if _spans_fit(size, mask_prob, mask_length, min_masks):
        # fairseq's rounding, of which no span is an outcome
        rounding = np.random.default_rng().random()
        num_spans = max(min_masks, int(mask_prob * size / mask_length + rounding))
    else:
        num_spans = max(1, min_masks)
        mask_length = min(mask_length, int(mask_prob * size / num_spans))
    while num_spans > 0 and mask_length > 0:
        try:
            return draw((1, size), None, 0.0, mask_length, num_spans)[0]
        except FAILURES:  # they cover it, or are empty
            mask_length //= 2
    return np.full(size, False)


# fairseq's method, which calls the function above where it called fairseq's
_fairseq_apply_mask = FunctionType(
    wav2vec2.Wav2Vec2Model.apply_mask.__code__,
    {**vars(wav2vec2), "compute_mask_indices": compute_mask_indices},
    "apply_mask",
    wav2vec2.Wav2Vec2Model.apply_mask.__defaults__,
)


def _apply_mask(w2v_model, x, padding_mask, **given):
    """``x`` (B, T, C) masked, and no indices: of them fairseq gathers the targets of pretraining,
    for which every utterance must have as many."""
    masked, _ = _fairseq_apply_mask(w2v_model, x, padding_mask, **given)
    return masked, None
