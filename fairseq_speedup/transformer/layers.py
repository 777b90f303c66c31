"""The loop over the transformer's layers, and the layers as fairseq has them."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.distributed.fully_sharded_data_parallel import FullyShardedDataParallel
from fairseq.models.wav2vec.wav2vec2 import (
    TransformerSentenceEncoderLayer,
    TransformerSentenceEncoderWithAdapterLayer,
)
from torch import nn

from fairseq_speedup.transformer.conformer import ConformerLayer
from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.reused_attention import reuses_map, shares_map
from fairseq_speedup.transformer.stage import LayerStage


def run_layers(
    layers: Iterable[tuple[int, nn.Module]],
    indices: list[int],
    num_run: int,
    batch: FrameBatch,
    stages: Iterable[LayerStage],
    call: Callable[[nn.Module, FrameBatch, torch.Tensor | None], tuple],
) -> None:
    """The one loop: each layer, then what each stage does after it.

    Args:
        layers: those to run, each with its position in the model
        indices: of the model's layers, in the model before layers were removed
        num_run: layers that a batch goes through at the depth that is chosen
        call: runs a layer on ``batch.hidden`` with what takes the place of its padding mask where
            it reuses an attention map, else None; gives what fairseq's layers do: what it made of
            the frames (T', A, C), and (attention weights to share or None, result)
    """
    for position, layer in layers:
        batch.enter(position)
        reused = batch.attention_map if reuses_map(layer) else None
        batch.hidden, (weights, _) = call(layer, batch, reused)
        if shares_map(layer):
            batch.attention_map = weights
        batch.is_last = position == num_run - 1
        for stage in stages:
            stage.after(indices[position], batch)
            if batch.is_empty:
                return


class PaddedLayers:
    """A transformer's layers over a padded batch, as fairseq runs them, dropout and layerdrop
    included: the same numbers, and the same draws.

    Args:
        encoder: fairseq's transformer
        indices: of its layers, in the model before layers were removed
        stages: what happens between them
    """

    def __init__(self, encoder: nn.Module, indices: list[int], stages: list[LayerStage]):
        self.encoder = encoder
        self.indices = indices
        self.stages = stages
        if stages:
            # a frame that fairseq adds to reach a multiple would be in the way of those that merge
            encoder.required_seq_len_multiple = 1

    def __call__(self, batch: FrameBatch, corpus_key=None) -> list[tuple]:
        """Runs the layers over ``batch``.

        Args:
            corpus_key: chooses an adapter, of layers that have adapters
        Returns:
            fairseq's results of each layer, of which the first is its hidden states (T', A, C)
        """
        missing = -int(batch.hidden.size(0)) % self.encoder.required_seq_len_multiple
        self._pad(batch, missing)
        results: list[tuple] = []

        def call(layer, batch, reused):
            options = {"need_weights": False}
            if corpus_key is not None and _has_adapter(layer):
                options["corpus_key"] = corpus_key
            mask = batch.padding_mask if reused is None else reused
            output = layer(batch.hidden, self_attn_padding_mask=mask, **options)
            hidden, (weights, result) = output
            results.append((hidden, None if shares_map(layer) else weights, result))
            return output

        num_run = sum(1 for _ in self.encoder.layers)
        run_layers(self._drawn(), self.indices, num_run, batch, self.stages, call)
        if missing:
            batch.hidden = batch.hidden[:-missing]
            results = [tuple(r if r is None else r[:-missing] for r in each) for each in results]
        return results

    def _pad(self, batch: FrameBatch, missing: int) -> None:
        """Adds frames to reach fairseq's multiple, and drops out."""
        encoder = self.encoder
        hidden = batch.hidden.transpose(0, 1)  # T x B x C -> B x T x C, in which fairseq draws
        if missing:
            mask = batch.padding_mask
            if mask is None:
                mask = torch.zeros_like(hidden[:, :, 0], dtype=torch.bool)
            batch.padding_mask = F.pad(mask, (0, missing), value=True)
            hidden = F.pad(hidden, (0, 0, 0, missing))
        hidden = F.dropout(hidden, encoder.dropout, encoder.training)
        batch.hidden = hidden.transpose(0, 1)

    def _drawn(self):
        """The layers that layerdrop leaves, each with its position: all those whose attention maps
        others reuse."""
        encoder = self.encoder
        for position, layer in enumerate(encoder.layers):
            drawn = np.random.random() if encoder.layerdrop > 0 else 1
            if not encoder.training or drawn > encoder.layerdrop or shares_map(layer):
                yield position, layer


def _has_adapter(layer) -> bool:
    if isinstance(layer, FullyShardedDataParallel):
        layer = layer.unwrapped_module
    return isinstance(layer, TransformerSentenceEncoderWithAdapterLayer)


def check_layers(layers: Iterable[nn.Module], off: str) -> None:
    """Raises ValueError for layers that no stage works between.

    Args:
        off: the option that switches the stage off
    """
    for layer in layers:
        if not isinstance(layer, TransformerSentenceEncoderLayer | ConformerLayer):
            raise ValueError(
                f"{off.split('=')[0]} works with transformer and Conformer layers; this model has "
                f"{type(layer).__name__}: set {off}"
            )
