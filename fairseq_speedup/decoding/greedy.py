"""Greedy CTC decoding: the best label of each frame, repeats merged, blanks dropped."""

import torch


def collapse(labels: torch.Tensor, scores: torch.Tensor, blank: int) -> dict:
    """Merges a best path into a hypothesis in fairseq's form.

    Args:
        labels: (T,), the best label of each frame
        scores: (T,), its log-probability in nats
        blank: index of the blank
    Returns:
        ``tokens`` (N,); ``score``, the log-probability of the whole path, blanks included;
        ``positional_scores`` (N,), the log-probability of each token's own frames; ``alignment``,
        a list of (frame, token) pairs, the first frame of each token
    """
    runs, lengths = torch.unique_consecutive(labels, return_counts=True)
    ends = lengths.cumsum(0)
    starts = ends - lengths
    run_of_frame = torch.repeat_interleave(torch.arange(len(runs)), lengths)
    run_scores = torch.zeros(len(runs), dtype=scores.dtype).index_add_(0, run_of_frame, scores)
    spoken = runs != blank
    first_frames = starts[spoken].tolist()
    return {
        "tokens": runs[spoken],
        "score": scores.sum().item(),
        "positional_scores": run_scores[spoken],
        "alignment": [(frame, token) for token, frame in enumerate(first_frames)],
        "attention": None,
    }


class GreedyDecoder:
    """Decodes a batch of log-probabilities on the device, collapses it on the CPU."""

    def __init__(self, blank: int):
        self.blank = blank

    def decode(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[dict]]:
        """
        Args:
            log_probs: (T, B, V)
            lengths: (B,), valid frames
        Returns:
            for each utterance its n-best list, here of one hypothesis (see :func:`collapse`)
        """
        scores, labels = log_probs.max(dim=-1)
        # T x B -> B x T
        scores, labels = scores.T.float().cpu(), labels.T.cpu()
        return [
            [collapse(labels[i, :length], scores[i, :length], self.blank)]
            for i, length in enumerate(lengths.tolist())
        ]
