"""The transformer's layers in their inference form: over batches without padding on CPUs, over
padded ones on GPUs."""

import torch
from torch import nn

from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.layers import run_layers


class PackedLayers:
    """Runs fused layers over a batch without its padding, utterances one behind another.

        padded   a0 a1 a2 a3        packed   a0 a1 a2 a3 b0 b1
                 b0 b1  .  .

    Args:
        encoder: fairseq's transformer
        indices: of its layers, in the model before layers were removed
    """

    def __init__(self, encoder: nn.Module, indices: list[int]):
        self.encoder = encoder
        self.indices = indices

    def __call__(self, batch: FrameBatch, **unused) -> list:
        """Runs the layers over ``batch``, which is zero at padding after; no results of each."""
        if batch.padding_mask is None and batch.hidden.size(1) == 1:
            self._run(batch, None)
            return []
        padded = batch.hidden.transpose(0, 1)  # T x B x C -> B x T x C
        if batch.padding_mask is None:
            valid = padded.new_ones(padded.shape[:2], dtype=torch.bool)
        else:
            valid = ~batch.padding_mask
        batch.hidden = padded[valid][:, None]
        self._run(batch, batch.lengths.tolist())
        unpacked = padded.new_zeros(padded.shape)
        unpacked[valid] = batch.hidden[:, 0]
        batch.hidden = unpacked.transpose(0, 1)
        return []

    def _run(self, batch: FrameBatch, lengths: list[int] | None) -> None:
        def call(layer, batch, reused):
            return layer(batch.hidden, reused, packed_lengths=lengths)

        layers = list(enumerate(self.encoder.layers))
        run_layers(layers, self.indices, len(layers), batch, (), call)


class MaskedLayers:
    """Runs fused layers over a padded batch, and never asks whether anything is padded.

    Args:
        encoder: fairseq's transformer
        indices: of its layers, in the model before layers were removed
    """

    def __init__(self, encoder: nn.Module, indices: list[int]):
        self.encoder = encoder
        self.indices = indices

    def __call__(self, batch: FrameBatch, **unused) -> list:
        """As PackedLayers."""

        def call(layer, batch, reused):
            return layer(batch.hidden, batch.padding_mask if reused is None else reused)

        layers = list(enumerate(self.encoder.layers))
        run_layers(layers, self.indices, len(layers), batch, (), call)
        if batch.padding_mask is not None:
            batch.hidden = batch.hidden.masked_fill(batch.padding_mask.T[:, :, None], 0)
        return []
