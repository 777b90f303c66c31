"""The audio that an int8 file is calibrated on, and its words."""

from dataclasses import dataclass

import numpy as np
import torch

from fairseq_speedup.data.utterances import Labelled, Recordings
from fairseq_speedup.decoding.language.boundaries import LabelWords
from fairseq_speedup.export.word_errors import WordErrors
from fairseq_speedup.tasks.speedup_finetuning import SpeedupFinetuningTask

DEFAULT_MINUTES = 10
PIECE_SECONDS = 30  # of an utterance that scales are found on at once
LEAST_SECONDS = 10  # of audio that is not silent
# standard deviation: of a waveform that the model takes as it is, and of one that was divided by
# its own, where fairseq adds 1e-5 to the variance
SILENT, SILENT_NORMALISED = 1e-4, 1e-2


class CalibrationError(ValueError):
    """Audio that no scale can be found on."""


@dataclass
class Int8Audio:
    """
    pieces: waveforms (S,), none silent
    words: of whole utterances
    """

    pieces: list[torch.Tensor]
    words: WordErrors

    @classmethod
    def of(
        cls, model, cfg, loaded, data: str | None, subset: str, audio: list[str], minutes: float
    ) -> "Int8Audio":
        """
        Args:
            model: a SpeedupCtc
            cfg, loaded: its whole config and task
            data: folder with the split ``subset``, None for ``audio``
            minutes: of audio at most, drawn from all utterances
        Raises:
            ValueError, OSError: audio that cannot be read
            CalibrationError: it is silent, or too short
        """
        task = SpeedupFinetuningTask.around(model, cfg, loaded)
        needed = task.lengths.needed_samples()
        utterances: Labelled | Recordings
        if audio:
            utterances = Recordings(task, audio, needed)
            symbols = task.target_dictionary.symbols[task.target_dictionary.nspecial :]
            post_process = LabelWords.of("the dictionary", [symbols]).post_process
            source = "--audio"
        else:
            task.load_dataset(subset, task_cfg=cfg.task)
            post_process = task.label_words[subset].post_process
            utterances = Labelled(task, subset, post_process)
            source = f"{data}/{subset}.tsv"
        chosen = drawn(utterances.num_samples, minutes * 60 * task.sample_rate)
        waveforms = [utterances.waveform(index).float() for index in chosen]
        normalised = bool(task.cfg.normalize)
        pieces = loud_pieces(waveforms, task.sample_rate, needed, normalised)
        check_enough(source, pieces, waveforms, task.sample_rate)
        references = utterances.references()
        words = WordErrors(
            task.target_dictionary,
            task.target_dictionary.index(task.blank_symbol),
            post_process,
            waveforms,
            references and [references[index] for index in chosen],
        )
        return cls(pieces, words)


def drawn(num_samples: list[int], most: float) -> list[int]:
    """Utterances in random order, the same every time, up to so many samples; one at least."""
    found: list[int] = []
    total = 0
    for index in np.random.default_rng(0).permutation(len(num_samples)).tolist():
        if not found or total + num_samples[index] <= most:
            found.append(index)
            total += num_samples[index]
    return found


def loud_pieces(waveforms, sample_rate: int, needed: int, normalised: bool) -> list[torch.Tensor]:
    """Waveforms (S,) in pieces of PIECE_SECONDS at most, without those that are silent."""
    silent = SILENT_NORMALISED if normalised else SILENT
    pieces = [piece for each in waveforms for piece in each.split(PIECE_SECONDS * sample_rate)]
    return [each for each in pieces if len(each) >= needed and each.std().item() > silent]


def check_enough(source: str, pieces, waveforms, sample_rate: int) -> None:
    """Raises CalibrationError."""
    seconds = sum(map(len, pieces)) / sample_rate
    if seconds < LEAST_SECONDS:
        given = sum(map(len, waveforms)) / sample_rate
        raise CalibrationError(
            f"{source}: {seconds:.1f} s of audio that is not silent, of {given:.1f} s, are too "
            f"little to find the scales of int8 on: give {LEAST_SECONDS} s or more, best some "
            "minutes of what will be transcribed"
        )
