/* What a form does to rows of frames between products, each in one pass over memory: several
 * passes over a row cost one, as it is in the first cache. rows.py calls it, and says what each
 * function gives. */
#include "numbers.h"

#define SHARED_FROM (1 << 14) /* numbers: fewer are not worth a second thread */

uint32_t sources(void) {
    return SOURCES; /* setup.py defines it: __init__.py knows by it that they belong together */
}

typedef struct {
    float count;        /* of levels above 0, or above the lowest */
    float offset;       /* level of 0, or of the lowest */
    float lowest;       /* that any number can be */
    int32_t both_sides; /* of 0: from minus the largest to plus that, whatever the lowest */
} Levels;

/* erf by Abramowitz and Stegun, 7.1.26, to 2e-7 */
INLINE float gelu_of(float x) {
    float z = (x < 0 ? -x : x) * 0.70710678f;
    float t = 1.0f / (1.0f + 0.3275911f * z);
    float sum = 1.061405429f;
    sum = sum * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    float tail = 0.5f * sum * t * exp_of_negative(-z * z); /* of the normal distribution */
    return x < 0 ? x * tail : x - x * tail;
}

INLINE float span_of(const float *row, ptrdiff_t width, const Levels *levels) {
    float highest = row[0], lowest = row[0];
    for (ptrdiff_t i = 0; i < width; i++) {
        highest = row[i] > highest ? row[i] : highest;
        lowest = row[i] < lowest ? row[i] : lowest;
    }
    float span = levels->both_sides ? (-lowest > highest ? -lowest : highest)
                                    : highest - levels->lowest;
    return span < 1e-12f ? 1e-12f : span;
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

INLINE void normalise(const float *row, ptrdiff_t width, const Norm *norm, float *out) {
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

INLINE void gelu(float *row, ptrdiff_t width) {
    for (ptrdiff_t i = 0; i < width; i++)
        row[i] = gelu_of(row[i]);
}

INLINE void rescale_row_any(float *row, const float *bias, ptrdiff_t width, float scale,
                            const Norm *norm, int with_gelu) {
    for (ptrdiff_t i = 0; i < width; i++)
        row[i] = row[i] * scale + bias[i];
    if (norm->weight)
        normalise(row, width, norm, row);
    if (with_gelu)
        gelu(row, width);
}
ON_EVERY_CPU(void, rescale_row,
             (float *row, const float *bias, ptrdiff_t width, float scale,
              const Norm *norm, int with_gelu),
             (row, bias, width, scale, norm, with_gelu))

INLINE void add_row_any(float *row, const float *bias, const float *residual,
                        ptrdiff_t width, float scale, const Norm *norm, float *normalised) {
    for (ptrdiff_t i = 0; i < width; i++)
        row[i] = residual[i] + (row[i] * scale + bias[i]);
    if (normalised)
        normalise(row, width, norm, normalised);
}
ON_EVERY_CPU(void, add_row,
             (float *row, const float *bias, const float *residual, ptrdiff_t width,
              float scale, const Norm *norm, float *normalised),
             (row, bias, residual, width, scale, norm, normalised))

INLINE void convolve_row_any(const float *samples, ptrdiff_t kernel_size,
                             const float *weight, const float *bias, ptrdiff_t width,
                             const Norm *norm, float *out) {
    for (ptrdiff_t i = 0; i < width; i++)
        out[i] = bias[i];
    for (ptrdiff_t k = 0; k < kernel_size; k++)
        for (ptrdiff_t i = 0; i < width; i++)
            out[i] += samples[k] * weight[k * width + i];
    if (norm->weight)
        normalise(out, width, norm, out);
    gelu(out, width);
}
ON_EVERY_CPU(void, convolve_row,
             (const float *samples, ptrdiff_t kernel_size, const float *weight,
              const float *bias, ptrdiff_t width, const Norm *norm, float *out),
             (samples, kernel_size, weight, bias, width, norm, out))

#define EACH_ROW                                                                      \
    _Pragma("omp parallel for schedule(static) if (num_rows * width > SHARED_FROM)")  \
    for (ptrdiff_t row = 0; row < num_rows; row++)

void rows_to_levels(const float *rows, ptrdiff_t stride, ptrdiff_t num_rows, ptrdiff_t width,
                    const Levels *levels, uint8_t *bytes, float *floats, float *spans) {
    EACH_ROW
    row_to_levels(rows + row * stride, width, levels, bytes ? bytes + row * width : NULL,
                  floats ? floats + row * width : NULL, spans + row);
}

void rescale(float *sums, const float *spans, float step, const float *bias, ptrdiff_t num_rows,
             ptrdiff_t width, const Norm *norm, int with_gelu) {
    EACH_ROW
    rescale_row(sums + row * width, bias, width, spans[row] * step, norm, with_gelu);
}

void rescale_gelu_to_levels(float *sums, const float *spans, float step, const float *bias,
                            ptrdiff_t num_rows, ptrdiff_t width, const Levels *levels,
                            uint8_t *bytes, float *floats, float *new_spans) {
    const Norm none = {NULL, NULL, 0};
    EACH_ROW {
        float *values = sums + row * width;
        rescale_row(values, bias, width, spans[row] * step, &none, 1);
        row_to_levels(values, width, levels, bytes ? bytes + row * width : NULL,
                      floats ? floats + row * width : NULL, new_spans + row);
    }
}

void rescale_add(float *sums, const float *spans, float step, const float *bias,
                 ptrdiff_t num_rows, ptrdiff_t width, const float *residual, const Norm *norm,
                 float *normalised) {
    EACH_ROW
    add_row(sums + row * width, bias, residual + row * width, width, spans[row] * step, norm,
            normalised ? normalised + row * width : NULL);
}

void convolve_gelu(const float *samples, ptrdiff_t stride, ptrdiff_t kernel_size,
                   const float *weight, const float *bias, ptrdiff_t num_rows, ptrdiff_t width,
                   const Norm *norm, float *out) {
    EACH_ROW
    convolve_row(samples + row * stride, kernel_size, weight, bias, width, norm,
                 out + row * width);
}
