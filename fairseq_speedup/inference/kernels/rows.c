/* What a form does to rows of frames between products, each in one pass over memory. rows.py calls
 * it, and says what each function gives. */
#include "rows.h"

#define SHARED_FROM (1 << 14) /* numbers: fewer are not worth a second thread */

uint32_t sources(void) {
    return SOURCES; /* setup.py defines it: __init__.py knows by it that they belong together */
}

INLINE void rescale_row_any(float *row, const float *bias, ptrdiff_t width, float scale,
                            const Norm *norm, int with_gelu) {
    for (ptrdiff_t i = 0; i < width; i++)
        row[i] = row[i] * scale + bias[i];
    if (norm->weight)
        normalise_any(row, width, norm, row);
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
        normalise_any(row, width, norm, normalised);
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
        normalise_any(out, width, norm, out);
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
