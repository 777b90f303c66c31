"""Multiply-accumulates (MACs) of a CTC model, by closed form at every utterance's true length.

fvcore counts the same by tracing the model (:mod:`fairseq_speedup.profiling.fvcore_count`); tracing
costs a forward pass for each length, so whole data sets are counted here, and a run checks these
formulas against fvcore once. A MAC is one multiplication with its addition, in a convolution, a
linear layer or an attention product; norms, activations and softmax are not counted.
"""

from dataclasses import dataclass, fields

import numpy as np
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer, Wav2Vec2Model
from torch import nn

from fairseq_speedup.lengths import conv_length, multiple_length

COUNTS = ("full", "modules")


class UncountableError(NotImplementedError):
    """A part of the model whose closed form is not known here."""


@dataclass
class Macs:
    """MACs of each stage; arrays over utterances, or sums."""

    waveform_reduction: np.ndarray
    front_end: np.ndarray
    transformer: np.ndarray
    head: np.ndarray

    @property
    def total(self):
        return sum(getattr(self, stage.name) for stage in fields(self))

    def sum(self) -> "Macs":
        return Macs(**{f.name: int(np.sum(getattr(self, f.name))) for f in fields(self)})

    def as_dict(self) -> dict:
        return {f.name: getattr(self, f.name) for f in fields(self)}


class MacCounter:
    """Counts ``speedup_ctc`` and stock ``wav2vec_ctc`` models.

    Args:
        model: the model
        count: ``full``, or ``modules`` to leave out what a counter of nn.Module layers does not
            see: the attention products and the projections around them, which fairseq and torch
            call as functions. That is how arXiv 2303.06740 counted.
    Raises:
        UncountableError: the model has layers without a closed form here
    """

    def __init__(self, model, count: str = "full"):
        if count not in COUNTS:
            raise ValueError(f"unknown count={count!r}; valid values: {', '.join(COUNTS)}")
        encoder = model.w2v_encoder
        self.w2v = encoder.w2v_model
        if not isinstance(self.w2v, Wav2Vec2Model):
            raise UncountableError(f"MACs of {type(self.w2v).__name__} are not known")
        self.reduction = getattr(encoder, "waveform_reduction", None)
        self.head_macs_per_frame = sum(
            m.weight.numel() for m in encoder.proj.modules() if isinstance(m, nn.Linear)
        )
        self.exits = getattr(encoder, "exit", None)
        self.with_attention = count == "full"
        for layer in self.w2v.encoder.layers:
            if type(layer) is not TransformerSentenceEncoderLayer:
                raise UncountableError(f"MACs of {type(layer).__name__} are not known")

    def count(self, num_samples, num_layers_run=None) -> Macs:
        """MACs of utterances of ``num_samples`` (array), each alone, without padding.

        Args:
            num_layers_run: layers that each ran before it left (array); None for all
        """
        num_samples = np.asarray(num_samples, dtype=np.int64)
        reduction_macs = num_samples * 0
        if self.reduction is not None:
            reduction_macs = self.reduction.macs(num_samples)
            num_samples = self.reduction.output_lengths(num_samples)
        front_end_macs, num_frames = self._front_end(num_samples)
        return Macs(
            waveform_reduction=reduction_macs,
            front_end=front_end_macs,
            transformer=self._transformer(num_frames, num_layers_run),
            head=num_frames * self.head_macs_per_frame * self._num_heads_run(num_layers_run),
        )

    def _num_heads_run(self, num_layers_run):
        """Heads that each utterance asked: its exits and, had it stayed, the last."""
        if self.exits is None or num_layers_run is None or self.exits.criterion is None:
            return 1
        num_layers_run = np.asarray(num_layers_run)
        positions = np.array([self.exits.position(index) for index in self.exits.exits])
        reached = (num_layers_run[:, None] > positions[None, :]).sum(axis=1)
        return reached + (num_layers_run == len(self.w2v.encoder.layers))

    def _front_end(self, length):
        macs = 0
        for block in self.w2v.feature_extractor.conv_layers:
            conv = block[0]
            length = conv_length(length, conv.kernel_size[0], conv.stride[0])
            macs = macs + length * conv.weight.numel()
        if self.w2v.post_extract_proj is not None:
            macs = macs + length * self.w2v.post_extract_proj.weight.numel()
        return macs, length

    def _transformer(self, num_frames, num_layers_run):
        encoder = self.w2v.encoder
        macs = 0
        for conv in encoder.pos_conv.modules():
            if isinstance(conv, nn.Conv1d):
                # an even kernel gives one frame too many, which fairseq computes and cuts off
                outputs = conv_length(num_frames, conv.kernel_size[0], 1, conv.padding[0])
                macs = macs + outputs * _conv_weights(conv)
        # fairseq computes attention on a length rounded up to a multiple, 2 by default
        num_frames = multiple_length(num_frames, encoder.required_seq_len_multiple)
        for position, layer in enumerate(encoder.layers):
            was_run = 1 if num_layers_run is None else np.asarray(num_layers_run) > position
            macs = macs + was_run * self._layer(layer, num_frames)
        return macs

    def _layer(self, layer, num_frames):
        macs = num_frames * (layer.fc1.weight.numel() + layer.fc2.weight.numel())
        if self.with_attention:
            width = layer.embedding_dim
            macs = macs + num_frames * 4 * width * width  # q, k, v, out
            macs = macs + 2 * num_frames * num_frames * width  # q.k and weights.v
        return macs


def _conv_weights(conv: nn.Conv1d) -> int:
    """Weights of a convolution; its ``weight`` may be hidden behind weight norm."""
    return conv.out_channels * (conv.in_channels // conv.groups) * conv.kernel_size[0]
