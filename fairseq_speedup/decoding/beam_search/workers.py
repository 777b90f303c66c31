"""Beam search in processes of its own, so that the encoder can go on meanwhile.

Processes, not threads: flashlight-text holds Python's global lock while it searches.
"""

import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np

from fairseq_speedup.decoding.beam_search.search import Found, Search

_search: Search | None = None  # of a worker


def _start(search: Search) -> None:
    global _search
    _search = search


def _work(log_probs: list[np.ndarray]) -> tuple[list[list[Found]], float]:
    assert _search is not None, "a worker begins with _start"
    return timed_search(_search, log_probs)


def timed_search(search: Search, log_probs: list[np.ndarray]) -> tuple[list[list[Found]], float]:
    """What a search finds, and the seconds it took."""
    start = time.perf_counter()
    found = search.search(log_probs)
    return found, time.perf_counter() - start


class Workers:
    """
    Args:
        search: what each process runs; they share its memory, being forked
        num_workers: processes
    """

    def __init__(self, search: Search, num_workers: int):
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError(f"--decoder-workers {num_workers} needs a system that can fork; use 0")
        self.num_workers = num_workers
        self.pool = ProcessPoolExecutor(
            num_workers, multiprocessing.get_context("fork"), _start, (search,)
        )
        # forked now, while this process has few threads
        for future in [self.pool.submit(_work, []) for _ in range(num_workers)]:
            future.result()

    def close(self) -> None:
        """Ends the processes."""
        self.pool.shutdown()

    def submit(self, log_probs: list[np.ndarray]) -> "Pending":
        """Starts a search over a batch, the utterances shared out by length."""
        shares: list[list[int]] = [[] for _ in range(min(self.num_workers, len(log_probs)))]
        load = [0] * len(shares)
        for index in sorted(range(len(log_probs)), key=lambda i: -len(log_probs[i])):
            least = load.index(min(load))
            shares[least].append(index)
            load[least] += len(log_probs[index])
        futures = [self.pool.submit(_work, [log_probs[i] for i in share]) for share in shares]
        return Pending(shares, futures)


class Pending:
    """A batch that workers are at."""

    def __init__(self, shares: list[list[int]], futures: list[Future]):
        self.shares = shares
        self.futures = futures

    def result(self) -> tuple[list[list[Found]], float]:
        """What was found for each utterance, and the workers' seconds, added up. Waits for it."""
        by_index: dict[int, list[Found]] = {}
        seconds = 0.0
        for share, future in zip(self.shares, self.futures, strict=True):
            found, spent = future.result()
            by_index |= dict(zip(share, found, strict=True))
            seconds += spent
        return [by_index[index] for index in range(len(by_index))], seconds
