"""What every candidate has in common."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fairseq_speedup.optimize.candidates import Candidate


@dataclass(frozen=True)
class Setup:
    """
    path: of the checkpoint
    data: folder with manifests and labels, None for audio files alone
    subset: split of it
    audio: files, where there is no data folder
    overrides: of the model's options, the user's own
    decoding: options of decoding, as the user gave them
    post_process: how labels become text, as fairseq-generate takes it
    folder: for what an engine needs to have written
    cpu: stay on the CPU
    """

    path: str
    data: str | None
    subset: str
    audio: list[str]
    overrides: dict
    decoding: dict
    post_process: str
    folder: str
    cpu: bool = False

    @property
    def device(self) -> torch.device:
        """That candidates run on."""
        return torch.device("cuda" if torch.cuda.is_available() and not self.cpu else "cpu")

    def options(self, overrides: dict | None = None) -> dict:
        """What the checkpoint is loaded with: the user's options, and then ``overrides``."""
        return {**self._data_option, **self.overrides, **(overrides or {})}

    def options_of(self, candidate: Candidate) -> dict:
        """What the checkpoint of a candidate is loaded with; a smaller one that was made of the
        model's carries the user's options."""
        if not candidate.is_made:
            return self.options(candidate.overrides)
        return {**self._data_option, **candidate.loaded}

    @property
    def _data_option(self) -> dict:
        return {} if self.data is None else {"data": self.data}


def plugin_folder(user_dir: str | None) -> str:
    """What fairseq's commands are given as user directory: the user's own, or this package."""
    return user_dir or str(Path(__file__).parents[1])
