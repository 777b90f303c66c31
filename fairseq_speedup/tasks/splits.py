"""That every utterance of a split can be used, once fairseq has loaded it."""

import logging

from fairseq.data import FileAudioDataset

from fairseq_speedup.data.audio import CheckedAudioDataset
from fairseq_speedup.data.feasibility import check_feasibility, report_feasibility
from fairseq_speedup.data.manifest import Manifest
from fairseq_speedup.data.split_checks import check_lengths, check_symbols

logger = logging.getLogger(__name__)

# of a batch: the option, by whether it is of training
MAX_SAMPLES = {True: "dataset.max_tokens", False: "dataset.max_tokens_valid"}


def check_split(
    task, split: str, manifest: Manifest, labels: list[list[str]], decoding: bool, training: bool
) -> None:
    """Puts a :class:`CheckedAudioDataset` in the place of fairseq's. In training bad utterances are
    left out and counted.

    Args:
        task: a SpeedupFinetuningTask that has loaded the split
        labels: of each row of the manifest
        decoding, training: what it is for; neither is validation
    Raises:
        ManifestError, BadUtteranceError, InfeasibleCtcError: naming the file and what is wrong
    """
    with_labels = task.datasets[split]
    if not isinstance(with_labels.dataset, FileAudioDataset):
        logger.warning("%s: a subsample is not checked", split)
        return
    audio = CheckedAudioDataset.of(with_labels.dataset, split, skip_bad=training)
    with_labels.dataset = audio
    skipped = audio.skipped_indices
    labels = [line for row, line in enumerate(labels) if row not in skipped]
    audio.root_dir = manifest.root  # fairseq's has the byte order mark of the file
    if labels:  # so has its first line of labels
        with_labels.labels[0] = with_labels.text_compressor.compress(" ".join(labels[0]))
    check_symbols(audio, labels, task.target_dictionary, task.cfg.labels)
    if task.lengths is not None:
        check_lengths(audio, task.lengths.needed_samples(any_speed=training))
    if decoding:
        return
    if not training:  # now, and not after an epoch
        check_batches(audio, task.of_training("dataset.max_tokens_valid"))
    if task.lengths is not None:
        used = ~audio.left_out
        frames = task.lengths.ctc_lengths(audio.sizes[used], any_speed=training)
        used_labels = [line for line, keep in zip(labels, used, strict=True) if keep]
        report_feasibility(
            split,
            check_feasibility(frames, used_labels),
            task.cfg.allow_infeasible_ctc,
            task.zero_infinity,
        )


def check_batches(audio: CheckedAudioDataset, max_samples: int | None) -> None:
    """Raises BadUtteranceError for an utterance that is longer than a batch may be."""
    audio.check_fits(max_samples, MAX_SAMPLES[audio.skip_bad])
