"""What every decoder takes and gives: log-probabilities in, fairseq's hypotheses out."""

from typing import Protocol

import torch


class Batch(Protocol):
    """A batch that is decoded, or is being decoded by other processes.

    seconds_elsewhere: spent on it by those, once it is done
    """

    @property
    def seconds_elsewhere(self) -> float: ...

    def wait(self) -> None:
        """Until other processes are done with it."""

    def hypotheses(self) -> list[list[dict]]:
        """For each utterance its n-best list, best first (see
        :func:`~fairseq_speedup.decoding.hypothesis.from_path`). Waits for it."""


class Decoder(Protocol):
    """Of CTC emissions.

    overlaps: whether the encoder can go on while a batch is decoded
    """

    @property
    def overlaps(self) -> bool: ...

    def start(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> Batch:
        """
        Args:
            log_probs: (T, B, V)
            lengths: (B,), valid frames
        """

    def close(self) -> None:
        """Once everything is decoded."""

    def report(self) -> dict:
        """What it adds to compute.json."""
