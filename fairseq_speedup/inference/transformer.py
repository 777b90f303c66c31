"""fairseq's transformer in its inference form."""

import torch

from fairseq_speedup.inference.attention import Packing
from fairseq_speedup.inference.graphs import BucketedLayers


class PackedLoop:
    """Runs the layers over a batch without its padding, utterances one behind another; or with it,
    as CUDA graphs.

    Takes the place of ``extract_features`` of fairseq's transformer.

    Args:
        packing: that the layers look at
        captures: CUDA graphs, for a GPU
    """

    def __init__(self, encoder, packing: Packing, captures: bool = False):
        self.encoder = encoder
        self.packing = packing
        self.captures = captures
        self.bucketed = BucketedLayers(self._run_padded)

    def __call__(self, x, padding_mask=None, tgt_layer=None, min_layer=0, corpus_key=None):
        """
        Args:
            x: (B, T, C)
            padding_mask: (B, T), True at padding, or None
            tgt_layer: None; other layers than the last are not to be had here
            min_layer, corpus_key: not used
        Returns:
            (B, T, C), zero at padding, and no layer results
        """
        if tgt_layer is not None:
            raise ValueError(f"tgt_layer={tgt_layer}: the inference form runs every layer")
        encoder = self.encoder
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[:, :, None], 0)
        if encoder.pos_conv is not None:
            x = x + encoder.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not encoder.layer_norm_first:
            x = encoder.layer_norm(x)
        if self.captures:
            return self._captured(x, padding_mask), []
        if padding_mask is None and x.size(0) > 1:
            padding_mask = x.new_zeros(x.shape[:2], dtype=torch.bool)
        if padding_mask is None:
            return self._run(x.transpose(0, 1), None).transpose(0, 1), []
        valid = ~padding_mask
        packed = self._run(x[valid][:, None], valid.sum(dim=1).tolist())
        out = x.new_zeros(x.shape)
        out[valid] = packed[:, 0]
        return out, []

    def _captured(self, x, padding_mask):
        if padding_mask is None:
            padding_mask = x.new_zeros(x.shape[:2], dtype=torch.bool)
        x = self.bucketed(x.transpose(0, 1), padding_mask).transpose(0, 1)
        return x.masked_fill(padding_mask[:, :, None], 0)

    def _run_padded(self, x, padding_mask):
        for layer in self.encoder.layers:
            x, _ = layer(x, self_attn_padding_mask=padding_mask)
        return x

    def _run(self, x, lengths: list[int] | None):
        self.packing.lengths = lengths
        try:
            for layer in self.encoder.layers:
                x, _ = layer(x)
        finally:
            self.packing.lengths = None
        return x
