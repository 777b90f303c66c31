/* Self-attention of one utterance: attention.c. */
#ifndef ATTENTION_H
#define ATTENTION_H

#include "numbers.h"

/* Rows of queries, keys and values are `stride` apart, heads of a row `head_stride`; `bias` (heads, frames,
 * frames) or NULL is added to the scaled products. `out` may be where the queries are. With `in_words`
 * products are of whole numbers of 16 bits where this CPU sums them in one instruction. Returns 1 where
 * memory is at its end. */
int attend(const float *queries, const float *keys, const float *values, ptrdiff_t stride,
           ptrdiff_t head_stride, ptrdiff_t num_heads, ptrdiff_t num_frames, ptrdiff_t dim,
           const float *bias, float *out, ptrdiff_t out_stride, ptrdiff_t num_threads,
           int most_bits, int in_words);

#endif
