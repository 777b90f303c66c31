"""CUDA graphs of the transformer's layers: a GPU that is given a whole stack of layers at once does
not wait for Python between their kernels."""

from collections import OrderedDict

import torch

from fairseq_speedup.refusals import reason

BUCKET = 64  # frames, 1.28 s at 20 ms: lengths are rounded up to a multiple
LONGEST = 3072  # frames, 61 s: beyond, kernels are long enough to hide what starting them costs
MOST_GRAPHS = 32  # the one used least recently gives way
WARM_UPS = 3  # runs before a capture, in which libraries choose and allocate


def captured(function, inputs: tuple):
    """A function of the same tensors that replays what the GPU did in one call.

    Args:
        function: takes CUDA tensors of fixed shapes, gives one, and asks the GPU for no value
        inputs: example
    """
    static = tuple(each.clone() for each in inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*static)

    def replay(*given):
        for mine, theirs in zip(static, given, strict=True):
            mine.copy_(theirs)
        graph.replay()
        return output

    return replay


class BucketedLayers:
    """Runs the layers on batches whose length is rounded up, one captured graph for each shape.

    Attributes:
        note: why nothing is captured, None while it is

    Args:
        run: takes frames (T, B, C) and a mask (B, T), True at padding; gives (T, B, C)
        capture: as :func:`captured`
    """

    def __init__(self, run, capture=captured):
        self.run = run
        self.capture = capture
        self.graphs: OrderedDict = OrderedDict()
        self.note: str | None = None

    def __call__(self, frames, padding_mask):
        """
        Args:
            frames: (T, B, C)
            padding_mask: (B, T), True at padding
        """
        num_frames, batch_size = frames.shape[:2]
        if num_frames > LONGEST or self.note is not None:
            return self.run(frames, padding_mask)
        more = -num_frames % BUCKET
        padded = torch.nn.functional.pad(frames, (0, 0, 0, 0, 0, more))
        mask = torch.nn.functional.pad(padding_mask, (0, more), value=True)
        graph = self._graph((num_frames + more, batch_size), (padded, mask))
        if graph is None:
            return self.run(frames, padding_mask)
        return graph(padded, mask)[:num_frames].clone()  # the next replay writes over it

    def _graph(self, shape: tuple[int, int], inputs: tuple):
        if shape in self.graphs:
            self.graphs.move_to_end(shape)
            return self.graphs[shape]
        try:
            graph = self.capture(self.run, inputs)
        except RuntimeError as error:
            self.note = f"not captured: {reason(error)}"
            self.graphs.clear()
            return None
        self.graphs[shape] = graph
        if len(self.graphs) > MOST_GRAPHS:
            self.graphs.popitem(last=False)
        return graph
