"""The audio of a split or of files, one utterance at a time, as a model takes it."""

import sys
from typing import Any

import torch

from fairseq_speedup.data.recording import RecordingError, read_recording


class Labelled:
    """A split of a data folder, as fairseq-generate reads it.

    Args:
        task: of ours, which has loaded it
        subset: its name
        post_process: how labels become text, as fairseq-generate takes it

    Attributes:
        num_samples: of each utterance
    """

    def __init__(self, task: Any, subset: str, post_process: str):
        self.dataset = task.dataset(subset)
        self.task = task
        self.post_process = post_process
        self.num_samples = [int(self.dataset.num_tokens(i)) for i in range(len(self.dataset))]

    def waveform(self, index: int) -> torch.Tensor:
        """(S,)"""
        return self.dataset[index]["source"]

    def references(self) -> list[str]:
        dictionary, found = self.task.target_dictionary, []
        for index in range(len(self.dataset)):
            labels = self.dataset.get_label(index, self.dataset.process_label)
            text = dictionary.string(labels.int(), self.post_process, escape_unk=True)
            found.append(text)
        return found


class Recordings:
    """Audio files without labels; those that cannot be read are left out, and told.

    Args:
        tells: whether they are told here
    """

    def __init__(self, task: Any, paths: list[str], needed_samples: int, tells: bool = True):
        self.task = task
        self.needed_samples = needed_samples
        self.paths: list[str] = []
        self.num_samples: list[int] = []
        for path in paths:
            try:
                num_samples = len(self._read(path))
            except RecordingError as error:
                if tells:
                    print(f"{error}; left out", file=sys.stderr)
                continue
            self.paths.append(path)
            self.num_samples.append(num_samples)
        if not self.paths:
            raise ValueError(f"--audio: none of {len(paths)} files can be read")

    def waveform(self, index: int) -> torch.Tensor:
        """(S,)"""
        return self._read(self.paths[index])

    def _read(self, path: str) -> torch.Tensor:
        cfg = self.task.cfg
        return read_recording(
            path, cfg.sample_rate, bool(cfg.normalize), self.needed_samples
        ).waveform

    def references(self) -> None:
        return None
