"""Self-attention in C: half to nine tenths of the time of torch's fused kernel with AVX-512."""

import torch

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.kernels import INT, POINTER, SIZE, declare

FLOAT_SIZE = 4

declare("attend", *[POINTER] * 3, *[SIZE] * 5, *[POINTER] * 2, *[SIZE] * 2, INT, INT, returns=INT)


def can_attend(projected, padding_mask) -> bool:
    """Whether :func:`attend_in_c` can be called: in fp32, on a CPU, without padding."""
    return padding_mask is None and kernels.takes(projected)


def attend_in_c(
    projected, num_heads: int, packed_lengths=None, biases=None, in_words: bool = False
) -> torch.Tensor:
    """
    Args:
        projected: (T, B, 3 * C), queries, keys and values, of all heads each; or packed, (sum of
            lengths, 1, 3 * C)
        packed_lengths: frames of each utterance, of packed ones
        biases: for each utterance (heads, T, T), added to the scaled products; or None
        in_words: products of whole numbers of 16 bits, where this CPU multiplies them faster (with
            AVX-512 VNNI, or AVX2 alone): queries and keys of 12 bits (of 64 channels a head),
            weights of 15, values of 10, and their signs
    Returns:
        (T, B, C), or so packed
    Raises:
        MemoryError
    """
    projected = projected.contiguous()
    num_frames, batch_size, width = projected.shape
    out_width = width // 3
    out = projected.new_empty(num_frames, batch_size, out_width)
    row = 0  # of the first frame of an utterance
    for index, length in enumerate(packed_lengths or [num_frames] * batch_size):
        queries = projected.data_ptr() + row * width * FLOAT_SIZE
        bias = None if biases is None else biases[index].float().contiguous()
        failed = kernels.LIBRARY.attend(
            *(queries + part * out_width * FLOAT_SIZE for part in range(3)),
            *(batch_size * width, out_width // num_heads),
            *(num_heads, length, out_width // num_heads),
            None if bias is None else bias.data_ptr(),
            out.data_ptr() + row * out_width * FLOAT_SIZE,
            batch_size * out_width,
            torch.get_num_threads(),
            kernels.MOST_BITS,
            in_words,
        )
        if failed:
            raise MemoryError(f"attention of {length} frames")
        row += 1 if packed_lengths is None else length
    return out
