"""Transformer layers of wav2vec 2.0's in C: their linear layers and attention in one call."""

import ctypes

import torch
from torch import nn

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.kernels import INT, POINTER, SIZE, declare
from fairseq_speedup.inference.kernels.linears import LinearInC, LinearStruct
from fairseq_speedup.inference.kernels.rows import NormInC


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, LinearStruct) for name in ("projection", "out", "first", "second")),
        ("attention_norm", NormInC),
        ("final_norm", NormInC),
        ("heads", SIZE),
        ("norm_first", ctypes.c_int32),
    ]


declare(
    "transformer_layer",
    *(ctypes.POINTER(_Layer), POINTER, ctypes.POINTER(SIZE)),
    *(SIZE, SIZE, INT, POINTER),
    returns=INT,
)


class LayerInC(kernels.HoldsAddresses):
    """
    Args:
        linears: of queries, keys and values, of what attention gives, and the two of the
            feed-forward layer, with a GELU between
        norms: of attention and of the feed-forward layer, fp32
        norm_first: norms come before these, not after
    """

    def __init__(
        self,
        linears: list[LinearInC],
        norms: list[nn.LayerNorm],
        num_heads: int,
        norm_first: bool,
    ):
        structs = (each.struct for each in linears)
        self._struct = _Layer(*structs, *map(NormInC.of, norms), num_heads, norm_first)
        # the structure has addresses alone, and a model may be given other storage
        self._held = linears, [part.detach() for norm in norms for part in norm.parameters()]
        self.width = linears[-1].out_features

    def outputs(self, frames: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """(T, 1, C) -> (T, 1, C)

        Args:
            frames: of one utterance, or of several one behind another
            lengths: of each
        Raises:
            ValueError: frames of another width or number
            MemoryError
        """
        if frames.size(-1) != self.width or sum(lengths) != len(frames):
            raise ValueError(
                f"{len(frames)} frames of {frames.size(-1)} channels, {sum(lengths)} of "
                f"{self.width} needed"
            )
        frames = frames.contiguous()
        out = torch.empty_like(frames)
        if kernels.LIBRARY.transformer_layer(
            self._struct,
            frames.data_ptr(),
            (SIZE * len(lengths))(*lengths),
            *(len(lengths), torch.get_num_threads(), kernels.MOST_BITS),
            out.data_ptr(),
        ):
            raise MemoryError(f"a layer of {len(frames)} frames")
        return out
