/* Self-attention of one utterance: attention.c. */
#ifndef ATTENTION_H
#define ATTENTION_H

#include "numbers.h"

/* Rows of queries, keys and values are `stride` apart, heads of a row `head_stride`; `bias` (heads, frames,
 * frames) or NULL is added to the scaled products. Returns 1 where memory is at its end. */
int attend(const float *queries, const float *keys, const float *values, ptrdiff_t stride,
           ptrdiff_t head_stride, ptrdiff_t num_heads, ptrdiff_t num_frames, ptrdiff_t dim,
           const float *bias, float *out, ptrdiff_t out_stride, ptrdiff_t num_threads,
           int most_bits);

#endif
