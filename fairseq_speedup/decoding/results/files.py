"""fairseq's results and the files beside them: n-best lists with their scores, and word times."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_speedup.data.audio import CheckedAudioDataset
from fairseq_speedup.data.sound_files import split_row
from fairseq_speedup.decoding.language.words import Words
from fairseq_speedup.decoding.options import DecodingOptions
from fairseq_speedup.decoding.results.generated import ResultFile, ctm_path, nbest_path
from fairseq_speedup.decoding.results.timestamps import TimedWord, word_times
from fairseq_speedup.lengths import FrameGrid

NBEST_COLUMNS = ["id", "rank", "score", "acoustic_score", "lm_score", "num_words", "text"]


def clear_files(folder: str, subset: str) -> None:
    """Removes those of an earlier run, as fairseq empties its own."""
    for path in (nbest_path(folder, subset), ctm_path(folder, subset)):
        if os.path.exists(path):
            os.remove(path)


def result_files(
    options: DecodingOptions,
    cfg: Any,
    words: Words,
    audio: Any,
    lengths: Any,
    sample_rate: int,
) -> list[ResultFile]:
    """The files that a run of fairseq-generate writes beside fairseq's own.

    Args:
        options: DecodingOptions, checked
        cfg: the config of fairseq-generate
        audio: the data set, as CheckedAudioDataset
        lengths: of the model
    Raises:
        ValueError: --ctm where utterances have no names
    """
    folder, subset = cfg.common_eval.results_path, cfg.dataset.gen_subset
    files: list[ResultFile] = []
    if folder is not None and options.ctc_decoder == "beam":
        files.append(NbestFile(nbest_path(folder, subset), words))
    if options.ctm:
        if folder is None:
            raise ValueError("--ctm writes into the results: give --results-path")
        if not isinstance(audio, CheckedAudioDataset) or words.boundary is None:
            raise ValueError("--ctm needs audio files of a manifest, and labels that make words")
        recordings = recording_names([audio.file_of(index) for index in range(len(audio))])
        grid = lengths.frame_grid()
        path = ctm_path(folder, subset)
        files.append(CtmFile(path, words, grid, recordings, audio.sizes, sample_rate))
    return files


class NbestFile:
    """A tab-separated row for each hypothesis: the utterance's number, as in fairseq's results, the
    rank from 1, scores (nats, but log10 of the language model), words counted, text."""

    def __init__(self, path: str, words: Words):
        self.path = path
        self.words = words
        Path(path).write_text("\t".join(NBEST_COLUMNS) + "\n", encoding="utf-8")

    def add(self, ids: list[int], nbest: list[list[dict]]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            for utterance, hypotheses in zip(ids, nbest, strict=True):
                for rank, each in enumerate(hypotheses, start=1):
                    symbols = [self.words.symbols[token] for token in each["tokens"].tolist()]
                    text = " ".join(self.words.of(symbols))
                    scores = "\t".join(f"{each[name]:.4f}" for name in NBEST_COLUMNS[2:5])
                    file.write(f"{utterance}\t{rank}\t{scores}\t{each['num_words']}\t{text}\n")

    def close(self) -> None:
        """Nothing is left to write."""


@dataclass
class CtmFile:
    """Word times in NIST's CTM form: recording, channel 1, start and duration in seconds, word;
    sorted by recording, as NIST's tools want it, once it is closed.

    grid: of the logit frames
    recordings: names of the utterances, by number
    num_samples: of the utterances
    sample_rate: in Hz
    """

    path: str
    words: Words
    grid: FrameGrid
    recordings: list[str]
    num_samples: list[int]
    sample_rate: int

    def __post_init__(self) -> None:
        self.rows: dict[int, list[str]] = {}
        Path(self.path).write_text("")

    def add(self, ids: list[int], nbest: list[list[dict]]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            for utterance, hypotheses in zip(ids, nbest, strict=True):
                timed = word_times(
                    hypotheses[0],
                    self.words,
                    self.grid,
                    self.num_samples[utterance],
                    self.sample_rate,
                )
                self.rows[utterance] = ctm_rows(self.recordings[utterance], timed)
                file.writelines(self.rows[utterance])

    def close(self) -> None:
        with open(self.path, "w", encoding="utf-8") as file:
            for utterance in sorted(self.rows, key=lambda each: self.recordings[each]):
                file.writelines(self.rows[utterance])


def ctm_rows(recording: str, timed: list[TimedWord]) -> list[str]:
    return [
        f"{recording} 1 {each.start:.3f} {each.end - each.start:.3f} {each.word}\n"
        for each in timed
    ]


def recording_names(files: list[str]) -> list[str]:
    """Names without blanks for files of a manifest: their paths without the ending; whole rows of
    what is inside a zip.

    Raises:
        ValueError: two files have one name
    """
    in_zip = [split_row(row)[1] is not None for row in files]
    names = [
        (row if whole else os.path.splitext(row)[0]).replace(" ", "_")
        for row, whole in zip(files, in_zip, strict=True)
    ]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"--ctm: two recordings of the manifest are named {double}")
    return names
