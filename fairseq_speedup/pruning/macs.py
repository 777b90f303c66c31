"""The MACs of what gates can close, as a function of how much of it is left: of numbers, exact; of
expectations, which gates learn by, differentiable."""

from types import SimpleNamespace

import numpy as np

from fairseq_speedup.lengths import conv_length, multiple_length
from fairseq_speedup.macs import MacCounter


class PrunableMacs:
    """MACs of one utterance through an encoder, at its default speed.

    ``macs`` counts the whole model; the formula here is of the parts that differ, and
    what it gives for the whole model, taken from that count, leaves the constant ``rest``.

    Args:
        encoder: a SpeedupEncoder with whole layers
        num_samples: of the utterance
    """

    def __init__(self, encoder, num_samples: int):
        w2v_model = encoder.w2v_model
        counter = MacCounter(SimpleNamespace(w2v_encoder=encoder))
        length = encoder.waveform_reduction.output_lengths(np.array([num_samples]))
        frames = encoder.front_end.output_lengths(length)
        given = counter.layer_frames(encoder.frame_reduction.output_lengths(frames))[0]
        multiple = w2v_model.encoder.required_seq_len_multiple
        # frames, kernel size and channels of each convolution
        self.convolutions: list[tuple[int, int, int]] = []
        if encoder.cnn is not None:
            for channels, kernel_size, stride in encoder.cnn.conv_layers:
                length = conv_length(length, kernel_size, stride)
                self.convolutions.append((int(length[0]), kernel_size, channels))
        projection = w2v_model.post_extract_proj
        self.projected = 0 if projection is None else int(frames[0]) * projection.out_features
        self.heads: dict[int, int] = {}  # MACs of one head, by the layer's index
        self.units: dict[int, int] = {}  # of one unit
        self.full_heads: dict[int, int] = {}
        self.full_units: dict[int, int] = {}
        width = w2v_model.encoder.embedding_dim
        layers = zip(encoder.kept_layers, w2v_model.encoder.layers, given, strict=True)
        for index, layer, num_frames in layers:
            num_frames, attention = int(multiple_length(num_frames, multiple)), layer.self_attn
            dim = attention.head_dim
            gate = getattr(attention, "macs_per_frame", None)
            relative = num_frames * gate() // attention.num_heads if gate is not None else 0
            self.heads[index] = 4 * num_frames * width * dim + 2 * num_frames**2 * dim + relative
            self.units[index] = 2 * num_frames * width
            self.full_heads[index] = attention.num_heads
            self.full_units[index] = layer.fc1.out_features
        self.full_channels = [channels for _, _, channels in self.convolutions]
        self.full = int(counter.count([num_samples]).sum().total)
        self.rest = 0
        self.rest = self.full - self.of(self.full_channels, self.full_heads, self.full_units)

    def of(self, channels, heads, units):
        """
        Args:
            channels: of each convolution's output; numbers or tensors
            heads, units: of each layer, by its index
        """
        macs, before = self.rest, 1
        for (num_frames, kernel_size, _), count in zip(self.convolutions, channels, strict=True):
            macs = macs + num_frames * kernel_size * count * before
            before = count
        if self.convolutions and self.projected:
            macs = macs + self.projected * before
        for index, each in self.heads.items():
            macs = macs + each * heads[index]
        for index, each in self.units.items():
            macs = macs + each * units[index]
        return macs
