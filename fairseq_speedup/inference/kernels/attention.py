"""Self-attention in C: half to nine tenths of the time of torch's fused kernel with AVX-512."""

import torch

from fairseq_speedup.inference import kernels
from fairseq_speedup.inference.kernels import INT, POINTER, SIZE, declare

MOST_BITS = 512  # of the vectors that it computes in, where the CPU has them

declare("attend", *[POINTER] * 3, *[SIZE] * 5, POINTER, POINTER, SIZE, INT, returns=INT)


def can_attend(query, padding_mask) -> bool:
    """Whether :func:`attend_in_c` can be called: in fp32, on a CPU, without padding."""
    return padding_mask is None and kernels.takes(query)


def attend_in_c(query, key, value, bias=None) -> torch.Tensor:
    """
    Args:
        query, key, value: (B, heads, T, C / heads), of one layout
        bias: (B or 1, heads, T, T), added to the scaled products, or None
    Returns:
        (B, T, C)
    Raises:
        ValueError: not alike
        MemoryError
    """
    if not (query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype):
        raise ValueError("query, key and value are of several shapes or types")
    query, key, value = _of_one_layout(query, key, value)
    batch_size, num_heads, num_frames, dim = query.shape
    if bias is not None:
        bias = bias.float().expand(batch_size, -1, -1, -1)
    attended = query.new_empty(batch_size, num_frames, num_heads * dim)
    for index, out in enumerate(attended):
        of_utterance = None if bias is None else bias[index].contiguous()
        failed = kernels.LIBRARY.attend(
            *(each[index].data_ptr() for each in (query, key, value)),
            *(query.stride(2), query.stride(1), num_heads, num_frames, dim),
            None if of_utterance is None else of_utterance.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
            MOST_BITS,
        )
        if failed:
            raise MemoryError(f"attention of {num_frames} frames")
    return attended


def _of_one_layout(*tensors):
    strides = {each.stride() for each in tensors}
    if len(strides) == 1 and tensors[0].stride(3) == 1:
        return tensors
    return [each.contiguous() for each in tensors]
