"""The transformer's layers in their inference form."""

import torch
from fairseq import utils
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.attention import FusedAttention
from fairseq_speedup.inference.kernels.layers import LayerInC
from fairseq_speedup.inference.linear import Constant
from fairseq_speedup.inference.low_rank import in_form


class FusedLayer(TransformerSentenceEncoderLayer):
    """fairseq's layer without dropout, with fused attention and the form's linear layers."""

    counts_as = TransformerSentenceEncoderLayer  # its MACs

    @classmethod
    def of(cls, layer: TransformerSentenceEncoderLayer, linear, self_attn) -> "FusedLayer":
        """Takes the weights and the hooks of ``layer``, which is not to be used any more.

        Args:
            linear: builds the form's linear layers
            self_attn: the form's attention, made of the layer's, but for its last linear layer, its
                ``out_proj``, which is asked for here
        """
        fused = cls.__new__(cls)
        fused.__dict__.update(layer.__dict__)
        fused.self_attn = self_attn
        fused.uses_gelu = layer.activation_fn is utils.get_activation_fn("gelu")
        if layer.fc1.out_features:
            fused.fc1 = in_form(layer.fc1, linear)
            fused.fc2 = in_form(layer.fc2, linear, of_gelus=fused.uses_gelu)
        else:  # all units were pruned
            fused.fc2 = Constant(layer.fc2.bias)
        fused.in_c = fused._in_c()
        return fused

    def _in_c(self) -> LayerInC | None:
        """All of it in one call, where each part can be, attention in fp32 among them."""
        attention = self.self_attn
        if type(attention) is not FusedAttention or attention.relative is not None:
            return None
        if attention.dtype is not torch.float32 or not self.uses_gelu:
            return None
        parts = attention.in_proj, attention.out_proj, self.fc1, self.fc2
        linears = [part.in_c for part in parts if getattr(part, "in_c", None) is not None]
        norms = [self.self_attn_layer_norm, self.final_layer_norm]
        if len(linears) < len(parts) or not kernels.takes(*(norm.weight for norm in norms)):
            return None
        return LayerInC(linears, norms, attention.num_heads, self.layer_norm_first)

    def forward(self, x, self_attn_padding_mask=None, packed_lengths=None, **unused):
        """
        Args:
            x: (T, B, C), padded; or packed, (sum of lengths, 1, C)
            self_attn_padding_mask: (B, T), True at padding, or None; or what the attention asks for
                in its place
            packed_lengths: frames of each utterance, of packed ones
        Returns:
            (T, B, C), and (attention weights to share or None, None), as fairseq's layer
        """
        batch = self_attn_padding_mask, packed_lengths
        unpadded = self_attn_padding_mask is None and x.size(1) == 1
        if self.in_c is not None and unpadded and kernels.takes(x):
            return self.in_c.outputs(x, packed_lengths or [len(x)]), (None, None)
        if self.layer_norm_first:
            attended, weights = self.self_attn(self.self_attn_layer_norm(x), *batch)
            x, normalised = self.self_attn.out_proj.added_and_normalised(
                attended, x, self.final_layer_norm
            )
            x = self.fc2.added(self._units(normalised), x)
        else:
            attended, weights = self.self_attn(x, *batch)
            _, x = self.self_attn.out_proj.added_and_normalised(
                attended, x, self.self_attn_layer_norm
            )
            _, x = self.fc2.added_and_normalised(self._units(x), x, self.final_layer_norm)
        return x, (weights, None)

    def _units(self, x):
        """What goes into the second matrix of the feed-forward layer."""
        if self.fc1.out_features == 0:
            return x
        if self.uses_gelu:
            return self.fc1.gelu_then(x, self.fc2)
        return self.activation_fn(self.fc1(x))
