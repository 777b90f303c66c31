"""CUDA graphs: a GPU that is given a whole model at once does not wait for Python between its
kernels."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

from fairseq_speedup.console.refusals import reason

logger = logging.getLogger(__name__)

MOST_GRAPHS = 64  # the one used least recently gives way
WARM_UPS = 2  # runs before a capture, in which libraries choose and allocate


def captured(function: Callable, inputs: tuple, pool=None) -> Callable:
    """A function of the same tensors that replays what the GPU did in one call.

    Args:
        function: takes CUDA tensors of fixed shapes, gives one, and asks the GPU for no value
        inputs: example
        pool: memory that graphs share which are never replayed at the same time
    Returns:
        the function; the next replay, of any graph with the same memory, writes over what it gave
    """
    static = tuple(each.clone() for each in inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = function(*static)

    def replay(*given):
        for mine, theirs in zip(static, given, strict=True):
            mine.copy_(theirs)
        graph.replay()
        return output

    return replay


class Graphs:
    """One captured graph for each shape that comes more than once; what comes once is run as it is,
    and so is a shape for whose graph there was no memory.

    Attributes:
        note: why nothing is captured, None while it can be
        too_large: shapes whose graphs found no memory

    Args:
        run: as :func:`captured` wants it
        tell: is given what is not captured, and why, in words
        capture: as :func:`captured`
    """

    def __init__(self, run: Callable, tell: Callable[[str], None], capture: Callable = captured):
        self.run, self.tell = run, tell
        self.capture = capture
        self.graphs: OrderedDict[Hashable, Callable | None] = OrderedDict()  # None: seen once
        self.too_large: set[Hashable] = set()
        self.note: str | None = None
        self._pool = None

    def __call__(self, key: Hashable, *inputs: torch.Tensor) -> torch.Tensor:
        """
        Args:
            key: whatever changes what is run, other than the inputs' shapes
        Returns:
            what ``run`` gives of the inputs, to be used before the next call
        """
        key = key, *(each.shape for each in inputs)
        graph = self._graph(key, inputs)
        return self.run(*inputs) if graph is None else graph(*inputs)

    def _graph(self, key: Hashable, inputs: tuple) -> Callable | None:
        if self.note is not None or key in self.too_large:
            return None
        if key not in self.graphs:
            self.graphs[key] = None
        elif self.graphs[key] is None:
            try:
                self.graphs[key] = self._captured(inputs)
            except RuntimeError as error:
                self._give_up(key, inputs, error)
                return None
        self.graphs.move_to_end(key)
        graph = self.graphs[key]
        if len(self.graphs) > MOST_GRAPHS:
            self.graphs.popitem(last=False)
        return graph

    def _captured(self, inputs: tuple) -> Callable:
        if self._pool is None and inputs[0].device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
        return self.capture(self.run, inputs, self._pool)

    def _give_up(self, key: Hashable, inputs: tuple, error: RuntimeError) -> None:
        """One shape where memory was lacking, all of them otherwise."""
        if not _is_out_of_memory(error):
            self.note = f"not captured: {reason(error)}"
            self.graphs.clear()
            self.tell(f"none: {self.note}")
            logger.warning("CUDA graphs are not used: %s", self.note)
            return
        del self.graphs[key]
        self.too_large.add(key)
        self.tell(f"CUDA graphs, but none of {len(self.too_large)} shapes that found no memory")
        if len(self.too_large) == 1:
            logger.warning(
                "no memory for a CUDA graph of inputs of %s: such run without one; of other sizes "
                "that find none nothing is said",
                [tuple(each.shape) for each in inputs],
            )


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether that is what it is, or what came before it: a capture that fails fails once more when
    it is ended."""
    while error is not None and not isinstance(error, torch.cuda.OutOfMemoryError):
        error = error.__context__
    return error is not None
