"""The transformer's layers in their inference form: over batches without padding on CPUs, over
padded ones on GPUs."""

import torch
from torch import nn

from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.layers import run_layers
from fairseq_speedup.transformer.stage import LayerStage


class Packing:
    """Where the valid frames of a batch are, utterances one behind another.

        padded   a0 a1 a2 a3        packed   a0 a1 a2 a3 b0 b1
                 b0 b1  .  .

    Attributes:
        lengths: of each utterance, None of one that has no padding
    """

    def __init__(self, batch: FrameBatch):
        self.lengths, self.valid = None, None
        num_frames, num_utterances, _ = batch.hidden.shape
        if batch.padding_mask is not None:
            self.valid = ~batch.padding_mask
        elif num_utterances > 1:
            self.valid = batch.hidden.new_ones(num_utterances, num_frames, dtype=torch.bool)
        if self.valid is not None:
            self.lengths = batch.lengths.tolist()

    def pack(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, B, C) -> (sum of lengths, 1, C)"""
        return hidden if self.valid is None else hidden.transpose(0, 1)[self.valid][:, None]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(sum of lengths, 1, C) -> (T, B, C), zero at padding"""
        if self.valid is None:
            return packed
        padded = packed.new_zeros(*self.valid.shape, packed.size(2))
        padded[self.valid] = packed[:, 0]
        return padded.transpose(0, 1)


class PackedLayers:
    """Runs fused layers over a batch without its padding.

    Args:
        encoder: fairseq's transformer
        indices: of its layers, in the model before layers were removed
        stages: what happens between them, to the padded batch
    """

    def __init__(self, encoder: nn.Module, indices: list[int], stages: list[LayerStage]):
        self.encoder = encoder
        self.indices = indices
        self.stages = stages

    def __call__(self, batch: FrameBatch, **unused) -> list:
        """Runs the layers over ``batch``, which is zero at padding after; no results of each."""
        if self.stages:
            self._run(batch, self._layer_packed)
            return []
        packing = Packing(batch)
        batch.hidden = packing.pack(batch.hidden)

        def call(layer, batch, reused):
            return layer(batch.hidden, reused, packed_lengths=packing.lengths)

        self._run(batch, call)
        batch.hidden = packing.unpack(batch.hidden)
        return []

    @staticmethod
    def _layer_packed(layer, batch, reused):
        packing = Packing(batch)
        hidden, results = layer(packing.pack(batch.hidden), reused, packed_lengths=packing.lengths)
        return packing.unpack(hidden), results

    def _run(self, batch: FrameBatch, call) -> None:
        layers = list(enumerate(self.encoder.layers))
        run_layers(layers, self.indices, len(layers), batch, self.stages, call)


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
