"""Which parts stay, by importance per MAC."""

import torch

from fairseq_speedup.pruning.gates import PruningGates
from fairseq_speedup.pruning.hard_concrete import HardConcrete

SLACK = 0.005  # of the MACs: a part that would take the rest further below the target stays


class TargetError(ValueError):
    """A target that is not kept with all closed that can be.

    smallest: share of the MACs that is left then
    """

    def __init__(self, smallest: float):
        super().__init__(f"{smallest:.3f} of the MACs remain with all left out that can be")
        self.smallest = smallest


class Selection:
    """Closes gates in the order of what they are worth, the least important per MAC first, until
    the target is kept, then opens again what still fits: of the greatest worth first.

    Args:
        gates: of a model, with ``macs`` and ``prune_target``
        scores: importance of each gate's parts, (size,) on the CPU
        counts: of each gate, how many are open at the beginning: the most important; all by default

    Attributes:
        masks: (size,) of each gate, True where open

    Raises:
        TargetError
    """

    def __init__(
        self,
        gates: PruningGates,
        scores: dict[HardConcrete, torch.Tensor],
        counts: dict[HardConcrete, int] | None = None,
    ):
        self.gates = gates
        smallest = gates.smallest_share()
        if gates.prune_target < smallest:
            raise TargetError(smallest)
        self.scores = {gate: values.tolist() for gate, values in scores.items()}
        self.order = {
            gate: sorted(range(gate.size), key=values.__getitem__)
            for gate, values in self.scores.items()
        }
        self.counts = {gate: gate.size for gate in scores} if counts is None else dict(counts)
        self.masks = {gate: [True] * gate.size for gate in scores}
        for gate, order in self.order.items():
            for place in order[: gate.size - self.counts[gate]]:
                self.masks[gate][place] = False
        self.costs: dict[HardConcrete, float] = {}
        self.most = gates.prune_target * gates.macs.full
        self.least = self.most - SLACK * gates.macs.full
        self.macs = self._macs()
        self._price(list(scores))
        self._open_what_fits(self._close())

    @property
    def share(self) -> float:
        return self.macs / self.gates.macs.full

    def _macs(self) -> float:
        return self.gates.macs_of(self.counts.__getitem__)

    def _price(self, gates) -> None:
        """MACs of a part of each of these, as the others are now."""
        for gate in gates:
            self.counts[gate] -= 1
            self.costs[gate] = self.macs - self._macs()
            self.counts[gate] += 1

    def _count(self, gate, change: int) -> None:
        self.counts[gate] += change
        self.macs += change * self.costs[gate]
        channels = list(self.gates.channels.values())
        if gate in channels:  # a channel costs what its neighbours have channels for
            position = channels.index(gate)
            self._price(channels[max(0, position - 1) : position + 2])

    def _close(self) -> list[tuple[float, HardConcrete, int]]:
        """Until the target is kept; what was closed: its worth, its gate, its place."""
        order = self.order
        closed = []
        while self.macs > self.most:
            worths = {
                gate: self.scores[gate][places[gate.size - self.counts[gate]]] / self.costs[gate]
                for gate, places in order.items()
                if self.counts[gate] > gate.least
            }
            near = [gate for gate in worths if self.macs - self.costs[gate] >= self.least]
            gate = min(near or worths, key=worths.__getitem__)
            place = order[gate][gate.size - self.counts[gate]]
            closed.append((worths[gate], gate, place))
            self.masks[gate][place] = False
            self._count(gate, -1)
        return closed

    def _open_what_fits(self, closed) -> None:
        for _, gate, place in sorted(closed, key=lambda each: -each[0]):
            if self.macs + self.costs[gate] <= self.most:
                self.masks[gate][place] = True
                self._count(gate, 1)
