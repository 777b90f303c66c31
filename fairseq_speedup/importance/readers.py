"""The layers that read what gates can close, watched while the model runs on audio."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from fairseq_speedup.importance.whole_audio import set_within, whole_audio
from fairseq_speedup.low_rank.outputs import OutputStatistics
from fairseq_speedup.pruning.gated import Gated, OpenLayerNorm

MOST_ROWS = 1500  # of a piece of audio: as many as the frames that 30 seconds have


class Reader:
    """
    Args:
        layer: a GatedLinear or GatedConv1d
        residual: statistics of what the transformer layer that it is in is given, to which its
            outputs are added; None in the CNN

    Attributes:
        gate: that scales its inputs
        inputs: their statistics, over some of the frames of each piece
        slope: (size,), of the last piece: the loss's derivative by each of the gate's values,
            None where no gradient came
    """

    def __init__(self, layer: nn.Module, residual: OutputStatistics | None = None):
        self.layer = layer
        self.residual = residual
        (self.gate,) = layer.gate
        self.repeats = layer.repeats
        self.inputs = OutputStatistics(self.num_inputs, layer.weight.device)
        self.slope: torch.Tensor | None = None

    @property
    def num_inputs(self) -> int:
        return self.gate.size * self.repeats

    def given(self, layer, args):
        """A hook of what the layer is given."""
        (frames,) = args
        if torch.is_grad_enabled():
            if not frames.requires_grad:  # the first: no weight before it asks for a gradient
                frames = frames.detach().requires_grad_()
            values = frames.detach()  # the hook is held by the graph, which it must not hold
            frames.register_hook(lambda gradient: self._learn(self._rows(values * gradient)))
        rows = self._rows(frames.detach())
        self.inputs.add(rows[:: -(-len(rows) // MOST_ROWS)])
        return (frames,)

    def _rows(self, frames) -> torch.Tensor:
        """(rows, inputs), of (B, C, T) to a convolution, (..., C) to a linear layer."""
        if isinstance(self.layer, nn.Conv1d):
            frames = frames.transpose(1, 2)
        return frames.flatten(0, -2)

    def _learn(self, slopes) -> None:
        of_inputs = slopes.detach().sum(dim=0)
        self.slope = of_inputs.unflatten(0, (self.gate.size, self.repeats)).sum(dim=1)


class Readers:
    """
    Args:
        encoder: with gates

    Attributes:
        by_name: those of all gates, by the names of the layers
    """

    def __init__(self, encoder):
        self.encoder = encoder
        transformer = encoder.w2v_model.encoder
        device = next(transformer.parameters()).device
        self.residuals = {
            layer: OutputStatistics(transformer.embedding_dim, device)
            for layer in transformer.layers
        }
        within = {
            module: seen for layer, seen in self.residuals.items() for module in layer.modules()
        }
        self.by_name = {
            name: Reader(module, within.get(module))
            for name, module in encoder.named_modules()
            if isinstance(module, Gated) and not isinstance(module, OpenLayerNorm)
        }

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this they learn from what the encoder is given, the whole of it, and gradients
        reach all of them."""
        encoder = self.encoder
        with contextlib.ExitStack() as before:
            before.enter_context(whole_audio(encoder))
            set_within(before, encoder.w2v_model, "feature_grad_mult", 1.0)
            set_within(before, encoder, "freeze_finetune_updates", 0)
            for parameter in encoder.parameters():
                set_within(before, parameter, "requires_grad", False)
            for reader in self.by_name.values():
                before.callback(reader.layer.register_forward_pre_hook(reader.given).remove)
            for layer, seen in self.residuals.items():
                hook = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.add(args[0]))
                before.callback(hook.remove)
            yield
