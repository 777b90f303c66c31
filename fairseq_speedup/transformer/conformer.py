"""Conformer layers of wav2vec 2.0 (arXiv 2005.08100 and 2010.05171), with rotary (arXiv 2104.09864)
or relative (arXiv 1901.02860) positions, by fairseq's modules.

Positions, and the reach of the convolutions, are counted in the frames that a layer is given: where
frames were pooled or have merged, one step is one of the frames that are left.

fairseq's own encoder of them cannot be built by its current versions and returns less than the
transformer's; this one takes its place.
"""

import math

import torch
import torch.nn.functional as F
from fairseq.models.wav2vec import wav2vec2
from fairseq.modules import (
    ESPNETMultiHeadedAttention,
    RelPositionalEncoding,
    RelPositionMultiHeadedAttention,
)
from fairseq.modules.conformer_layer import ConformerWav2Vec2EncoderLayer, ConvolutionModule
from fairseq.modules.rotary_positional_embedding import RotaryPositionalEmbedding, rotate_half
from torch import nn

from fairseq_speedup.transformer.attention import attend


class ConformerAttention(ESPNETMultiHeadedAttention):
    """Without positions. fairseq's own form keeps the attention weights of every layer in memory;
    this one keeps none.

    Attributes:
        positions: (module,) that encodes them, shared by the layers; in a tuple, as it is the
            encoder's
    """

    positions: tuple = ()

    def forward(self, query, key=None, value=None, key_padding_mask=None, **unused):
        """
        Args:
            query: (T, B, C); key and value are the same
            key_padding_mask: (B, T), True at padding, or None
        Returns:
            (T, B, C), and None for the weights
        """
        frames = query.transpose(0, 1)  # T x B x C -> B x T x C
        q, k, v, bias = self._project(frames)
        dropout_prob = self.dropout.p if self.training else 0.0
        attended = attend(q, k, v, bias, key_padding_mask, dropout_prob)
        return self.linear_out(attended).transpose(0, 1), None

    def _project(self, frames):
        """Queries, keys and values (B, heads, T, C / heads), and a bias of their products or None,
        of frames (B, T, C)."""
        return *self.forward_qkv(frames, frames, frames), None

    def linear_macs(self, num_frames):
        """Multiply-accumulates of the projections."""
        return 4 * num_frames * self.linear_q.weight.numel()

    def product_macs(self, num_frames):
        """Multiply-accumulates of q.k and weights.v."""
        return 2 * num_frames * num_frames * self.linear_q.out_features


class RotaryPositionAttention(ConformerAttention):
    """The frames that queries and keys are made of are rotated by their position, each head's
    channels by themselves and before the projection, as fairseq does."""

    def _project(self, frames):
        (rotations,) = self.positions
        cos, sin = rotations(frames)
        heads = frames.unflatten(2, (self.h, self.d_k))
        rotated = (heads * cos + rotate_half(heads) * sin).flatten(2)
        return *self.forward_qkv(rotated, rotated, frames), None


class RelativePositionAttention(ConformerAttention, RelPositionMultiHeadedAttention):
    """The product of each query and the projected encoding of a distance is the bias."""

    def _project(self, frames):
        (encoding,) = self.positions
        q, k, v = self.forward_qkv(frames, frames, frames)
        distances = encoding(frames.transpose(0, 1)).transpose(0, 1)  # (1, 2T - 1, C)
        distances = self.linear_pos(distances).unflatten(2, (self.h, self.d_k))
        by_distance = (q + self.pos_bias_v[:, None]) @ distances.permute(0, 2, 3, 1)
        bias = self.rel_shift(by_distance) / math.sqrt(self.d_k)  # (B, heads, T, T)
        return q + self.pos_bias_u[:, None], k, v, bias

    def linear_macs(self, num_frames):
        return super().linear_macs(num_frames) + _num_distances(num_frames) * (
            self.linear_pos.weight.numel()
        )

    def product_macs(self, num_frames):
        by_distance = num_frames * _num_distances(num_frames) * self.linear_q.out_features
        return super().product_macs(num_frames) + by_distance


def _num_distances(num_frames):
    """From T - 1 frames before to T - 1 after."""
    return (2 * num_frames - 1) * (num_frames > 0)


# by fairseq's pos_enc_type; absolute positions are a convolution before the layers
ATTENTIONS = {
    "abs": ConformerAttention,
    "rope": RotaryPositionAttention,
    "rel_pos": RelativePositionAttention,
}


class Rotations(RotaryPositionalEmbedding):
    """Cosine and sine of every position's angles, from the buffer ``inv_freq`` (C / heads / 2,)
    that checkpoints hold: half precision may have rounded it."""

    def forward(self, frames):
        """(T, 1, C / heads) each, for frames (B, T, C)"""
        position = torch.arange(frames.size(1), device=frames.device, dtype=torch.float)
        angles = position[:, None] * self.inv_freq.float()
        angles = torch.cat([angles, angles], dim=1)[:, None]
        return angles.cos().to(frames), angles.sin().to(frames)


class ValidBatchNorm(nn.BatchNorm1d):
    """Statistics of valid frames alone; those that were learned, once the weights are frozen."""

    def forward(self, frames, padding_mask=None):
        """
        Args:
            frames: (B, C, T)
            padding_mask: (B, T), True at padding, or None
        """
        if not self.training or not self.weight.requires_grad:
            learned = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(frames, *learned, training=False, eps=self.eps)
        if padding_mask is None:
            return super().forward(frames)
        valid = ~padding_mask
        by_frame = frames.transpose(1, 2)
        normalised = torch.zeros_like(by_frame)
        normalised[valid] = super().forward(by_frame[valid]).to(normalised.dtype)
        return normalised.transpose(1, 2)


class MaskedConvolution(ConvolutionModule):
    """fairseq's convolution of a Conformer layer, which can leave padding out."""

    def forward(self, frames, padding_mask=None):
        """
        Args:
            frames: (B, T, C)
            padding_mask: (B, T), True at padding, or None to let padding in as fairseq does
        """
        frames = self.layer_norm(frames).transpose(1, 2)  # B x T x C -> B x C x T
        frames = self.glu(self.pointwise_conv1(frames))
        if padding_mask is not None:
            frames = frames.masked_fill(padding_mask[:, None], 0)
        frames = self.batch_norm(self.depthwise_conv(frames), padding_mask)
        frames = self.dropout(self.pointwise_conv2(self.activation(frames)))
        return frames.transpose(1, 2)


class ConformerLayer(ConformerWav2Vec2EncoderLayer):
    """fairseq's layer, whose convolution and batch norm can leave padding out.

    Attributes:
        masked: whether they do; fairseq's do not
    """

    masked = False

    def __init__(
        self, embed_dim, ffn_embed_dim, attention_heads, dropout, *args, attn_type=None, **kwargs
    ):
        super().__init__(
            embed_dim, ffn_embed_dim, attention_heads, dropout, *args, attn_type=attn_type, **kwargs
        )
        if attn_type == "espnet":
            attention = ATTENTIONS[self.pos_enc_type]
            self.self_attn = attention(embed_dim, attention_heads, dropout)
        self.conv_module.__class__ = MaskedConvolution
        self.conv_module.batch_norm = ValidBatchNorm(embed_dim)

    def forward(self, x, self_attn_mask=None, self_attn_padding_mask=None, **unused):
        """
        Args:
            x: (T, B, C)
            self_attn_padding_mask: (B, T), True at padding, or None
        Returns:
            (T, B, C), and fairseq's (attention weights, result of the second feed-forward)
        """
        x = x + 0.5 * self.ffn1(x)
        normalised = self.self_attn_layer_norm(x)
        attended, weights = self.self_attn(
            query=normalised,
            key=normalised,
            value=normalised,
            key_padding_mask=self_attn_padding_mask,
            need_weights=False,
        )
        x = x + self.self_attn_dropout(attended)
        # convolution is batch first: T x B x C -> B x T x C and back
        mask = self_attn_padding_mask if self.masked else None
        x = x + self.conv_module(x.transpose(0, 1), mask).transpose(0, 1)
        result = self.ffn2(x)
        return self.final_layer_norm(x + 0.5 * result), (weights, result)

    def macs(self, num_frames):
        """Multiply-accumulates for ``num_frames``, without attention."""
        convolution = self.conv_module
        weights = [
            *(linear.weight for ffn in (self.ffn1, self.ffn2) for linear in (ffn.w_1, ffn.w_2)),
            convolution.pointwise_conv1.weight,
            convolution.depthwise_conv.weight,
            convolution.pointwise_conv2.weight,
        ]
        return num_frames * sum(weight.numel() for weight in weights)


class ConformerEncoder(wav2vec2.ConformerEncoder):
    """fairseq's transformer with Conformer layers, and no positions but theirs."""

    def __init__(self, args):
        wav2vec2.TransformerEncoder.__init__(self, args)
        self.pos_conv = None  # which fairseq makes, saves and never runs
        self.required_seq_len_multiple = 1
        head_dim = args.encoder_embed_dim // args.encoder_attention_heads
        if args.pos_enc_type == "rope":
            self.embed_positions = Rotations(head_dim)
        else:
            self.embed_positions = RelPositionalEncoding(1, args.encoder_embed_dim)  # grows
        for module in self.modules():
            if isinstance(module, ConformerAttention):
                module.positions = (self.embed_positions,)

    def build_encoder_layer(self, args, **unused):
        return super().build_encoder_layer(args)

    extract_features = wav2vec2.TransformerEncoder.extract_features


def mask_convolutions(encoder) -> None:
    """Keeps padding out of the convolutions of an encoder's Conformer layers, if it has any."""
    for module in encoder.modules():
        if isinstance(module, ConformerLayer):
            module.masked = True


def hears_padding(encoder) -> bool:
    """Whether frames of padding, one that makes their number even among them, change others."""
    return any(isinstance(each, ConformerLayer) and not each.masked for each in encoder.modules())


def install() -> None:
    """Lets fairseq build its Conformers of these. Called once, when the plugin is imported."""
    wav2vec2.ConformerWav2Vec2EncoderLayer = ConformerLayer
    wav2vec2.ConformerEncoder = ConformerEncoder
