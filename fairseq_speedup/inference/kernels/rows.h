/* What is done to one row of frames between products: several passes over a row cost one, as it is in
 * the first cache. */
#ifndef ROWS_H
#define ROWS_H

#include "numbers.h"

typedef struct {
    float count;        /* of levels above 0, or above the lowest */
    float offset;       /* level of 0, or of the lowest */
    float lowest;       /* that any number can be */
    int32_t both_sides; /* of 0: from minus the largest to plus that, whatever the lowest */
} Levels;

#define SMALLEST_SPAN 1e-12f

/* Numbers that are not below 0 are ordered as their bits are, and infinities and NaN come after all
 * others. Comparing bits keeps them, which comparing numbers does not: what has a span of no number
 * becomes none. */
INLINE float larger_span(float one, float other) {
    return with_bits(bits_of(one) > bits_of(other) ? bits_of(one) : bits_of(other));
}

INLINE float span_of(const float *row, ptrdiff_t width, const Levels *levels) {
    int32_t largest = 0; /* of the numbers without their signs */
    float highest = row[0];
    for (ptrdiff_t i = 0; i < width; i++) {
        int32_t bits = bits_without_sign(row[i]);
        largest = bits > largest ? bits : largest;
        highest = row[i] > highest ? row[i] : highest;
    }
    float span = with_bits(largest);
    if (!levels->both_sides && is_finite(span))
        span = highest - levels->lowest;
    return larger_span(span, SMALLEST_SPAN);
}

INLINE void write_levels(const float *row, ptrdiff_t width, const Levels *levels, float span,
                         uint8_t *bytes, float *floats) {
    float scale = levels->count / span;
    float offset = levels->offset - (levels->both_sides ? 0.0f : levels->lowest * scale);
    if (bytes)
        for (ptrdiff_t i = 0; i < width; i++)
            bytes[i] = (uint8_t)(int32_t)(row[i] * scale + offset);
    else
        for (ptrdiff_t i = 0; i < width; i++)
            floats[i] = row[i] * scale + offset;
}

INLINE void row_to_levels_any(const float *row, ptrdiff_t width, const Levels *levels,
                              uint8_t *bytes, float *floats, float *span) {
    *span = span_of(row, width, levels);
    write_levels(row, width, levels, *span, bytes, floats);
}
ON_EVERY_CPU(void, row_to_levels,
             (const float *row, ptrdiff_t width, const Levels *levels, uint8_t *bytes,
              float *floats, float *span),
             (row, width, levels, bytes, floats, span))

typedef struct {
    const float *weight; /* NULL where nothing is normalised */
    const float *bias;
    float eps;
} Norm;

INLINE void normalise_any(const float *row, ptrdiff_t width, const Norm *norm, float *out) {
    float sum = 0, squares = 0;
    for (ptrdiff_t i = 0; i < width; i++)
        sum += row[i];
    float mean = sum / width;
    for (ptrdiff_t i = 0; i < width; i++)
        squares += (row[i] - mean) * (row[i] - mean);
    float scale = 1.0f / __builtin_sqrtf(squares / width + norm->eps);
    for (ptrdiff_t i = 0; i < width; i++)
        out[i] = (row[i] - mean) * scale * norm->weight[i] + norm->bias[i];
}
ON_EVERY_CPU(void, normalise,
             (const float *row, ptrdiff_t width, const Norm *norm, float *out),
             (row, width, norm, out))

INLINE void gelu(float *row, ptrdiff_t width) {
    for (ptrdiff_t i = 0; i < width; i++)
        row[i] = gelu_of(row[i]);
}

#endif
