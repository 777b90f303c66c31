"""CUDA graphs: a GPU that is given a whole model at once does not wait for Python between its
kernels."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

from fairseq_speedup.refusals import reason

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
    """One captured graph for each shape that comes more than once; what comes once is run as it is.

    Attributes:
        note: why nothing is captured, None while it can be

    Args:
        run: as :func:`captured` wants it
        capture: as :func:`captured`
    """

    def __init__(self, run: Callable, capture: Callable = captured):
        self.run = run
        self.capture = capture
        self.graphs: OrderedDict[Hashable, Callable | None] = OrderedDict()  # None: seen once
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
        if self.note is not None:
            return None
        if key not in self.graphs:
            self.graphs[key] = None
        elif self.graphs[key] is None:
            if self._pool is None and inputs[0].device.type == "cuda":
                self._pool = torch.cuda.graph_pool_handle()
            try:
                self.graphs[key] = self.capture(self.run, inputs, self._pool)
            except RuntimeError as error:
                self.note = f"not captured: {reason(error)}"
                self.graphs.clear()
                return None
        self.graphs.move_to_end(key)
        graph = self.graphs[key]
        if len(self.graphs) > MOST_GRAPHS:
            self.graphs.popitem(last=False)
        return graph
