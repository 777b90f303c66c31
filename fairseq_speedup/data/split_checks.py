"""Whether the utterances of a split can be used, before any is read. In training bad ones are left
out, counted and named; in other splits, and where they are most of it, they are an error."""

import logging

from fairseq.data import Dictionary

from fairseq_speedup.data.audio import CheckedAudioDataset
from fairseq_speedup.data.characters import LookAlikes
from fairseq_speedup.data.manifest import ManifestError

logger = logging.getLogger(__name__)

MAX_NAMED = 5  # utterances in one message
MAX_SYMBOLS = 40  # likewise


def check_symbols(
    audio: CheckedAudioDataset, labels: list[list[str]], dictionary: Dictionary, name: str
) -> None:
    """That the dictionary has all labels, and that there are some.

    Args:
        labels: of each utterance
        name: of the labels, as ``ltr``
    """
    known = dictionary.indices
    look_alikes = LookAlikes(known)
    bad = {}
    for index, line in enumerate(labels):
        unknown = sorted(set(line) - set(known))
        if unknown:
            bad[index] = f"labels outside the dictionary: {look_alikes.told(unknown)}"
    symbols = " ".join(dictionary.symbols[dictionary.nspecial :][:MAX_SYMBOLS])
    refuse(audio, bad, f"symbols of dict.{name}.txt: {symbols}")
    empty = [index for index, line in enumerate(labels) if not line]
    if empty:
        named = ", ".join(audio.file_of(index) for index in empty[:MAX_NAMED])
        logger.warning("%s: %d utterances have no labels: %s", audio.split, len(empty), named)


def check_lengths(audio: CheckedAudioDataset, needed: int) -> None:
    """That all have as many samples as the model needs."""
    bad = {
        int(index): f"{audio.sizes[index]} samples are shorter than one output frame"
        for index in (audio.sizes < needed).nonzero()[0]
    }
    refuse(audio, bad, f"this model needs at least {needed} samples")


def refuse(audio: CheckedAudioDataset, bad: dict[int, str], remedy: str) -> None:
    """
    Args:
        bad: what is wrong, by utterance
    Raises:
        ManifestError: they cannot be left out
    """
    if not bad:
        return
    named = "; ".join(
        f"utterance {index} ({audio.file_of(index)}): {reason}"
        for index, reason in list(bad.items())[:MAX_NAMED]
    )
    more = f"; and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
    message = f"{audio.split}: {len(bad)} of {len(audio)} utterances are bad: {named}{more}"
    if not audio.skip_bad or len(bad) > len(audio) / 2:
        raise ManifestError(f"{message}. {remedy}")
    logger.warning("%s. They are left out of training. %s", message, remedy)
    for index in bad:
        audio.leave_out(index)
