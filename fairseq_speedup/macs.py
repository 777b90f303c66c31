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

from fairseq_speedup.frontend import CnnFrontEnd
from fairseq_speedup.heads import head_macs_per_frame
from fairseq_speedup.lengths import conv_length, multiple_length
from fairseq_speedup.transformer.conformer import ConformerAttention, ConformerLayer
from fairseq_speedup.waveform import NoReduction

COUNTS = ("full", "modules")
COUNTABLE_LAYERS = (TransformerSentenceEncoderLayer, ConformerLayer)


class UncountableError(NotImplementedError):
    """A part of the model whose closed form is not known here."""


@dataclass
class Macs:
    """MACs of each stage; arrays over utterances, or sums."""

    waveform_reduction: np.ndarray
    front_end: np.ndarray
    frame_reduction: np.ndarray
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
            call as functions (of a Conformer, the products alone). That is how arXiv 2303.06740
            counted.
    Raises:
        UncountableError: the model has layers without a closed form here
    """

    def __init__(self, model, count: str = "full"):
        if count not in COUNTS:
            raise ValueError(f"unknown count={count!r}; valid values: {', '.join(COUNTS)}")
        if not hasattr(model, "w2v_encoder"):
            raise UncountableError(f"MACs of {type(model).__name__} are not known")
        encoder = model.w2v_encoder
        self.w2v = encoder.w2v_model
        if not isinstance(self.w2v, Wav2Vec2Model):
            raise UncountableError(f"MACs of {type(self.w2v).__name__} are not known")
        self.waveform_reduction = getattr(encoder, "waveform_reduction", None) or NoReduction()
        front_end = getattr(encoder, "front_end", None)
        self.front_end = front_end or CnnFrontEnd(self.w2v.feature_extractor)
        self.frames = getattr(encoder, "frame_reduction", None)
        self.stages = getattr(encoder, "stages", [])
        self.indices = getattr(encoder, "kept_layers", [])
        self.head_macs_per_frame = head_macs_per_frame(encoder.proj)
        self.with_attention = count == "full"
        for layer in self.w2v.encoder.layers:
            if getattr(layer, "counts_as", type(layer)) not in COUNTABLE_LAYERS:
                raise UncountableError(f"MACs of {type(layer).__name__} are not known")

    def count(self, num_samples, layer_frames=None) -> Macs:
        """MACs of utterances of ``num_samples`` (array), each alone, without padding.

        Args:
            layer_frames: frames that each layer was given (utterances, layers), of a model with
                exits or merging; None where all left after the layer that an option names, or
                nobody did, and frames merged by ``merge_ratio`` alone: what depends on the audio
                cannot be foretold
        """
        num_samples = np.asarray(num_samples, dtype=np.int64)
        waveform_macs = self.waveform_reduction.macs(num_samples)
        num_samples = self.waveform_reduction.output_lengths(num_samples)
        num_frames = self.front_end.output_lengths(num_samples)
        front_end_macs = self.front_end.macs(num_samples)
        if self.w2v.post_extract_proj is not None:
            projection = self.w2v.post_extract_proj.weight.numel()
            front_end_macs = front_end_macs + num_frames * projection
        pooling_macs = upsampling_macs = num_frames * 0
        pooled = num_frames
        if self.frames is not None:
            pooling_macs, upsampling_macs = self.frames.macs(num_frames)
            pooled = self.frames.output_lengths(num_frames)
        stages = self.stages
        if layer_frames is None:
            layer_frames = self.layer_frames(pooled)
            # exits at which each utterance decides are no part of what can be foretold
            stages = [each for each in stages if each.known_heads]
        layer_frames = np.asarray(layer_frames)
        num_heads = self._num_heads_run(layer_frames, stages)
        return Macs(
            waveform_reduction=waveform_macs,
            front_end=front_end_macs,
            frame_reduction=pooling_macs + upsampling_macs * num_heads,
            transformer=self._positions(num_frames) + self._layers(layer_frames),
            head=num_frames * self.head_macs_per_frame * num_heads,
        )

    def layer_frames(self, num_frames):
        """Frames (utterances, layers) that the layers are given of ``num_frames`` (utterances,),
        as far as that follows from their number."""
        given = []
        for position, _ in enumerate(self.w2v.encoder.layers):
            given.append(num_frames)
            for stage in self.stages:
                if stage.known_lengths:
                    num_frames = stage.lengths_after(self.indices[position], num_frames)
                if stage.leaves_after() == self.indices[position]:
                    num_frames = num_frames * 0
        return np.stack(given, axis=-1)

    def _num_heads_run(self, layer_frames, stages):
        """Heads that each utterance asked: those of ``stages`` and, where it came so far, the
        last."""
        num_run = sum(1 for _ in self.w2v.encoder.layers)
        asked_last = (layer_frames[:, num_run - 1] > 0).astype(int)
        return asked_last + sum(stage.num_heads_run(layer_frames) for stage in stages)

    def _positions(self, num_frames):
        """The positional convolutions; a Conformer may have none."""
        macs = num_frames * 0
        if self.w2v.encoder.pos_conv is None:
            return macs
        if self.frames is not None:
            num_frames = multiple_length(num_frames, self.frames.factor)
        for conv in self.w2v.encoder.pos_conv.modules():
            if isinstance(conv, nn.Conv1d):
                # an even kernel gives one frame too many, which fairseq computes and cuts off
                outputs = conv_length(
                    num_frames, conv.kernel_size[0], conv.stride[0], conv.padding[0]
                )
                macs = macs + outputs * _conv_weights(conv)
        return macs

    def _layers(self, layer_frames):
        # fairseq computes attention on a length rounded up to a multiple, 2 by default
        multiple = self.w2v.encoder.required_seq_len_multiple
        return sum(
            self._layer(layer, multiple_length(layer_frames[..., position], multiple))
            for position, layer in enumerate(self.w2v.encoder.layers)
        )

    def _layer(self, layer, num_frames):
        if isinstance(layer, ConformerLayer):
            macs = layer.macs(num_frames)
        else:
            macs = num_frames * (linear_macs(layer.fc1) + linear_macs(layer.fc2))
        return macs + self._attention(layer.self_attn, num_frames)

    def _attention(self, attention, num_frames):
        if isinstance(attention, ConformerAttention):
            macs = attention.linear_macs(num_frames)
            return macs + attention.product_macs(num_frames) if self.with_attention else macs
        if not self.with_attention:
            return 0
        width = attention.num_heads * attention.head_dim
        macs = num_frames * _projection_macs(attention)
        num_products = getattr(attention, "num_products", 2)  # q.k and weights.v
        macs = macs + num_products * num_frames * num_frames * width
        gate = getattr(attention, "macs_per_frame", None)  # of a relative position bias
        return macs + (num_frames * gate() if gate is not None else 0)


def linear_macs(linear) -> int:
    """Of one frame through a linear layer, which may be of low rank."""
    own = getattr(linear, "macs_per_frame", None)
    return own() if own is not None else linear.weight.numel()


def _projection_macs(attention) -> int:
    """Of one frame: query, key, value, as far as it has them, and what follows the products."""
    if attention.num_heads == 0:  # what is left is a bias
        return 0
    own = getattr(attention, "projection_macs", None)  # of an inference form
    if own is not None:
        return own
    names = getattr(attention, "projections", ("q_proj", "k_proj", "v_proj", "out_proj"))
    return sum(linear_macs(getattr(attention, name)) for name in names)


def _conv_weights(conv: nn.Conv1d) -> int:
    """Weights of a convolution; its ``weight`` may be hidden behind weight norm."""
    return conv.out_channels * (conv.in_channels // conv.groups) * conv.kernel_size[0]
