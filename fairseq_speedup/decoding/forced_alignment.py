"""The best CTC alignment of given labels, for several label sequences of one utterance at once."""

import numpy as np


def best_paths(log_probs: np.ndarray, sequences: list[list[int]], blank: int) -> list[np.ndarray]:
    """The Viterbi path through the CTC graph of each sequence (Graves et al., 2006).

    Args:
        log_probs: (T, V) in nats
        sequences: labels without blanks, each of which T frames can hold
        blank: index of the blank
    Returns:
        for each sequence (T,), a label for each frame
    """
    if not sequences:
        return []
    num_frames = len(log_probs)
    graph, skips = _graph(sequences, blank)
    scores = np.full(graph.shape, -np.inf)
    scores[:, 0] = 0.0  # before the first frame: as if after a blank
    moves = np.zeros((num_frames, *graph.shape), dtype=np.int8)
    for frame in range(num_frames):
        reached = np.full((3, *graph.shape), -np.inf)
        reached[0] = scores
        reached[1, :, 1:] = scores[:, :-1]
        reached[2, :, 2:] = np.where(skips[:, 2:], scores[:, :-2], -np.inf)
        moves[frame] = reached.argmax(axis=0)
        scores = reached.max(axis=0) + log_probs[frame][graph]
    paths = []
    for row, sequence in enumerate(sequences):
        last = 2 * len(sequence)
        state = last
        if sequence and scores[row, last - 1] > scores[row, last]:
            state = last - 1
        path = np.empty(num_frames, dtype=np.int64)
        for frame in reversed(range(num_frames)):
            path[frame] = graph[row, state]
            state -= moves[frame, row, state]
        paths.append(path)
    return paths


def _graph(sequences: list[list[int]], blank: int):
    """States (N, S) of blank, label, blank, label, ..., blank, padded with blanks; and whether each
    can be reached from two before it."""
    num_states = 2 * max(len(sequence) for sequence in sequences) + 1
    graph = np.full((len(sequences), num_states), blank)
    for row, sequence in enumerate(sequences):
        graph[row, 1 : 2 * len(sequence) : 2] = sequence
    skips = np.zeros(graph.shape, dtype=bool)
    skips[:, 2:] = (graph[:, 2:] != blank) & (graph[:, 2:] != graph[:, :-2])
    return graph, skips
