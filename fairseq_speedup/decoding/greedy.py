"""Greedy CTC decoding: the best label of each frame, repeats merged, blanks dropped."""

import torch

from fairseq_speedup.decoding.hypothesis import Decoded, from_path


class GreedyDecoder:
    """Decodes a batch of log-probabilities on the device, collapses it on the CPU."""

    overlaps = False  # with the encoder

    def __init__(self, blank: int):
        self.blank = blank

    def start(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> Decoded:
        return Decoded(self.decode(log_probs, lengths))

    def close(self) -> None:
        """Nothing is to be ended."""

    def report(self) -> dict:
        """Nothing to add to compute.json."""
        return {}

    def decode(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[dict]]:
        """
        Args:
            log_probs: (T, B, V)
            lengths: (B,), valid frames
        Returns:
            for each utterance its n-best list, here of one hypothesis: the best path (see
            :func:`~fairseq_speedup.decoding.hypothesis.from_path`)
        """
        scores, labels = log_probs.max(dim=-1)
        # T x B -> B x T
        scores, labels = scores.T.float().cpu(), labels.T.cpu()
        return [
            [from_path(labels[i, :length], scores[i, :length], self.blank)]
            for i, length in enumerate(lengths.tolist())
        ]
