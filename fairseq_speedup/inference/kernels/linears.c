/* Linear layers in fp32, and with int8 weights and inputs of a byte, with AVX2 and AVX-512: with what
 * comes before and after, by one team of threads. Weights are fetched from memory ahead of their
 * turn, as an utterance's few frames do not give enough to do while they come. linears.py calls it,
 * and says what each function gives. */
#include "linears.h"

#include <math.h>

#define MOST_GROUPS 768       /* whose weights are taken at once */
#define BLOCK (1 << 19)       /* bytes of rows that stay in the second cache */
#define FEWEST_TILES 4        /* that a thread is given at once */
#define SHARED_FROM (1 << 17) /* multiplications: fewer are not worth a second thread */

INLINE ptrdiff_t groups_of(const Weights *weights) {
    return rounded_up(weights->in * weights->by->size, GROUP * weights->by->together) / GROUP;
}

/* Where the `part`-th of `parts` parts of the groups begins */
INLINE ptrdiff_t first_group(const Weights *weights, ptrdiff_t part, ptrdiff_t parts) {
    const ptrdiff_t together = weights->by->together;
    return beginning(groups_of(weights) / together, part, parts) * together;
}

INLINE ptrdiff_t vectors_of(const Weights *weights) {
    return rounded_up(weights->out, weights->by->lanes) / weights->by->lanes;
}

ptrdiff_t packed_size(ptrdiff_t in, ptrdiff_t out, const Multiplier *by) {
    const Weights weights = {NULL, in, out, by};
    return vectors_of(&weights) * by->lanes * groups_of(&weights) * GROUP;
}

void pack(const uint8_t *rows, ptrdiff_t in, ptrdiff_t out, const Multiplier *by, uint8_t *packed) {
    const Weights weights = {packed, in, out, by};
    const ptrdiff_t bytes = in * by->size;
    const ptrdiff_t groups = groups_of(&weights), vectors = vectors_of(&weights);
    const ptrdiff_t parts = parts_of(groups, MOST_GROUPS);
    const ptrdiff_t panels = parts_of(vectors, by->most_vectors);
    for (ptrdiff_t part = 0; part < parts; part++)
        for (ptrdiff_t panel = 0; panel < panels; panel++) {
            ptrdiff_t first = beginning(vectors, panel, panels) * by->lanes;
            ptrdiff_t last = beginning(vectors, panel + 1, panels) * by->lanes;
            ptrdiff_t end = first_group(&weights, part + 1, parts);
            for (ptrdiff_t group = first_group(&weights, part, parts); group < end; group++)
                for (ptrdiff_t column = first; column < last; column++, packed += GROUP) {
                    ptrdiff_t rest = bytes - group * GROUP;
                    memset(packed, 0, GROUP);
                    if (column < out && rest > 0)
                        memcpy(packed, rows + column * bytes + group * GROUP,
                               rest < GROUP ? rest : GROUP);
                }
        }
}

INLINE float larger(float a, float b) { return a > b ? a : b; }

/* What four of these add up to, of those above 0 or of those below: their products a narrow multiplier
 * sums in 16 bits. The most of that */
INLINE float sum_of_fours(const float *weights, float scale, const int rounds) {
    float whole[READ_BEHIND], most = 0;
    for (int i = 0; i < READ_BEHIND; i++)
        whole[i] = rounds ? rintf(weights[i] / scale) : weights[i] / scale;
    for (int side = -1; side < 2; side += 2)
        for (int i = 0; i < GROUP; i += 2) {
            float pair = larger(side * whole[i], 0) + larger(side * whole[i + 1], 0);
            float next = larger(side * whole[i + 4], 0) + larger(side * whole[i + 5], 0);
            most = larger(most, pair + next);
        }
    return most;
}

/* Of all inputs of an output */
INLINE float largest_sum(const float *weights, ptrdiff_t in, float scale, const int rounds) {
    float most = 0, rest[READ_BEHIND] = {0};
    ptrdiff_t i = 0;
    for (; i + READ_BEHIND <= in; i += READ_BEHIND)
        most = larger(most, sum_of_fours(weights + i, scale, rounds));
    memcpy(rest, weights + i, (in - i) * sizeof *rest);
    return larger(most, sum_of_fours(rest, scale, rounds));
}

INLINE float narrow_scale_any(const float *weights, ptrdiff_t in, float smallest, float most,
                              float most_of_sums) {
    float scale = smallest;
    for (ptrdiff_t i = 0; i < in; i++)
        scale = larger(scale, fabsf(weights[i]));
    scale = larger(scale / most, largest_sum(weights, in, 1, 0) / most_of_sums);
    float share = 1;
    do { /* what was rounded may add up to more */
        scale *= share;
        share = largest_sum(weights, in, scale, 1) / most_of_sums;
    } while (share > 1 && is_finite(share));
    return scale;
}
ON_EVERY_CPU(float, narrow_scale,
             (const float *weights, ptrdiff_t in, float smallest, float most, float most_of_sums),
             (weights, in, smallest, most, most_of_sums))

void narrow_scales(const float *weights, ptrdiff_t out, ptrdiff_t in, float smallest, float most,
                   float most_of_sums, float *scales) {
    _Pragma("omp parallel for schedule(static)")
    for (ptrdiff_t i = 0; i < out; i++)
        scales[i] = narrow_scale(weights + i * in, in, smallest, most, most_of_sums);
}

/* A tile among the outputs; of the `width` columns that are summed there are `columns` */
typedef struct {
    ptrdiff_t row, rows, column, columns, width;
} Place;

/* Outputs of a tile's sums, in rows `pitch` apart: of those of bytes, which lie `width` apart; or where
 * those in fp32 are. A sum goes through memory once: what was stored last is waited for. */
INLINE void finish_tile_any(const int32_t *restrict sums, const Place *at, const Layer *layer,
                            const float *spans, const int with_gelu, float *restrict outputs,
                            ptrdiff_t pitch) {
    for (ptrdiff_t i = 0; i < at->rows; i++, sums += at->width, outputs += pitch) {
        if (!layer->scales) {
            gelu(outputs, at->columns);
            continue;
        }
        const float *restrict scales = layer->scales + at->column;
        const float *restrict bias = layer->bias + at->column;
        const float step = spans[at->row + i] * layer->step;
        if (with_gelu)
            for (ptrdiff_t j = 0; j < at->columns; j++)
                outputs[j] = gelu_of(sums[j] * scales[j] * step + bias[j]);
        else
            for (ptrdiff_t j = 0; j < at->columns; j++)
                outputs[j] = sums[j] * scales[j] * step + bias[j];
    }
}
ON_EVERY_CPU(void, finish_tile,
             (const int32_t *sums, const Place *at, const Layer *layer, const float *spans,
              int with_gelu, float *outputs, ptrdiff_t pitch),
             (sums, at, layer, spans, with_gelu, outputs, pitch))

/* Rows of `bytes` bytes */
INLINE void copy_rows(Sums from, Sums to, ptrdiff_t rows, ptrdiff_t bytes) {
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy((char *)to.first + i * to.stride, (const char *)from.first + i * from.stride, bytes);
}

/* Rows of `bytes` bytes, `stride` apart, which are to be written when others have been computed */
INLINE void fetch_rows(Sums rows, ptrdiff_t count, ptrdiff_t bytes) {
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t byte = 0; byte < bytes; byte += LINE)
            __builtin_prefetch((const char *)rows.first + i * rows.stride + byte, 1);
}

/* The tiles of some rows: every thread calls it, and has about as many of them; the last are given to
 * who is free. Between parts of the groups sums are where outputs will be, in rows `pitch` apart. */
static void multiply_rows(const Layer *layer, const uint8_t *rows, ptrdiff_t stride,
                          const float *spans, ptrdiff_t first_row, ptrdiff_t last_row,
                          int with_gelu, float *out, ptrdiff_t pitch) {
    const Weights *weights = &layer->weights;
    const ptrdiff_t lanes = weights->by->lanes;
    const ptrdiff_t num_rows = last_row - first_row, vectors = vectors_of(weights);
    const ptrdiff_t panels = parts_of(vectors, weights->by->most_vectors);
    const ptrdiff_t groups = groups_of(weights);
    const ptrdiff_t parts = parts_of(groups, MOST_GROUPS), of_panel = parts_of(num_rows, MOST_ROWS);
    for (ptrdiff_t part = 0; part < parts; part++) {
        const ptrdiff_t group = first_group(weights, part, parts);
        const ptrdiff_t groups_here = first_group(weights, part + 1, parts) - group;
        const uint8_t *packed = weights->packed + vectors * lanes * group * GROUP;
        /* sums of bytes are no outputs yet */
        const int is_last = part + 1 == parts, rescales = is_last && layer->scales;
        _Pragma("omp for schedule(guided, FEWEST_TILES) collapse(2) nowait")
        for (ptrdiff_t panel = 0; panel < panels; panel++)
            for (ptrdiff_t tile = 0; tile < of_panel; tile++) {
                Place at = {.row = first_row + beginning(num_rows, tile, of_panel),
                            .column = beginning(vectors, panel, panels) * lanes};
                at.rows = first_row + beginning(num_rows, tile + 1, of_panel) - at.row;
                at.width = beginning(vectors, panel + 1, panels) * lanes - at.column;
                const ptrdiff_t rest = weights->out - at.column;
                at.columns = at.width < rest ? at.width : rest;
                const uint8_t *here = packed + at.column * groups_here * GROUP;
                /* each of the panel's tiles fetches its part of what comes behind it */
                const ptrdiff_t bytes = at.width * groups_here * GROUP;
                int32_t summed[MOST_ROWS * MOST_VECTORS * MOST_LANES];
                const Sums aside = {summed, at.width * sizeof(int32_t)};
                const Sums outputs = {out + at.row * pitch + at.column, pitch * sizeof(float)};
                const int fits = at.columns == at.width;
                const Sums to = fits && !rescales ? outputs : aside;
                Sums from = {(float *)layer->starts + at.column, 0};
                if (part > 0)
                    from = fits ? outputs : aside;
                if (part > 0 && !fits)
                    copy_rows(outputs, aside, at.rows, at.columns * sizeof(int32_t));
                fetch_rows(outputs, at.rows, at.columns * sizeof(float));
                Tile *multiply = weights->by->tiles[at.rows - 1][at.width / lanes - 1];
                multiply(rows + at.row * stride + group * GROUP, stride, here, groups_here,
                         here + bytes + beginning(bytes, tile, of_panel),
                         at.width * GROUP / of_panel, from, to);
                if (!fits && !rescales)
                    copy_rows(aside, outputs, at.rows, at.columns * sizeof(int32_t));
                if (rescales || (is_last && with_gelu))
                    finish_tile(summed, &at, layer, spans, with_gelu, outputs.first, pitch);
            }
        if (!is_last) {
            _Pragma("omp barrier")
        }
    }
}

INLINE void finish_row_any(const After *after, ptrdiff_t row, ptrdiff_t width, float *out) {
    if (after->residual)
        for (ptrdiff_t i = 0; i < width; i++)
            out[i] = after->residual[row * width + i] + out[i];
    if (after->norm.weight) {
        float *normalised = after->normalised ? after->normalised + row * width : out;
        normalise_any(out, width, &after->norm, normalised);
        if (after->gelu)
            gelu(normalised, width);
    }
    if (after->levels)
        row_to_levels_any(out, width, after->levels, after->bytes + row * width, NULL,
                          after->spans + row);
}
ON_EVERY_CPU(void, finish_row, (const After *after, ptrdiff_t row, ptrdiff_t width, float *out),
             (after, row, width, out))

int linear(const Layer *layer, const Rows *given, const After *after, float *out) {
    const ptrdiff_t in = layer->weights.in, width = layer->weights.out;
    const ptrdiff_t num_rows = given->count;
    const int needs_levels = layer->scales && given->frames;
    const uint8_t *rows = given->bytes;
    const float *spans = given->spans;
    ptrdiff_t stride = given->stride;
    uint8_t *made = NULL;
    float *made_spans = NULL;
    if (needs_levels) {
        made = malloc(num_rows * in + READ_BEHIND), made_spans = malloc(num_rows * sizeof(float));
        if (!made || !made_spans) {
            free(made), free(made_spans);
            return 1;
        }
        rows = made, spans = made_spans, stride = in;
    } else if (given->frames)
        rows = (const uint8_t *)given->frames, stride *= sizeof(float);
    const ptrdiff_t parts = parts_of(groups_of(&layer->weights), MOST_GROUPS);
    const ptrdiff_t blocks = num_rows * in * layer->weights.by->size / parts / BLOCK + 1;
    const int finishes = after->residual || after->norm.weight || after->levels;
    _Pragma("omp parallel if (num_rows * in * width > SHARED_FROM)") {
        if (needs_levels)
            _Pragma("omp for schedule(static)")
            for (ptrdiff_t row = 0; row < num_rows; row++)
                row_to_levels(given->frames + row * given->stride, in, &layer->levels,
                              made + row * in, NULL, made_spans + row);
        for (ptrdiff_t block = 0; block < blocks; block++)
            multiply_rows(layer, rows, stride, spans, beginning(num_rows, block, blocks),
                          beginning(num_rows, block + 1, blocks),
                          after->gelu && !after->norm.weight, out, width);
        if (finishes) {
            _Pragma("omp barrier")
            _Pragma("omp for schedule(static)")
            for (ptrdiff_t row = 0; row < num_rows; row++)
                finish_row(after, row, width, out + row * width);
        }
    }
    free(made), free(made_spans);
    return 0;
}

/* A convolution over time of one utterance, in groups of channels */
typedef struct {
    ptrdiff_t groups, kernel, stride, padding;
} Convolution;

INLINE void group_to_levels_any(const float *frames, ptrdiff_t num_frames, ptrdiff_t pitch,
                                ptrdiff_t width, ptrdiff_t padding, const Levels *levels,
                                uint8_t *bytes, float *span) {
    *span = 0;
    for (ptrdiff_t i = 0; i < num_frames; i++)
        *span = larger_span(*span, span_of(frames + i * pitch, width, levels));
    memset(bytes, (uint8_t)levels->offset, padding * width);
    bytes += padding * width;
    for (ptrdiff_t i = 0; i < num_frames; i++, bytes += width)
        write_levels(frames + i * pitch, width, levels, *span, bytes, NULL);
    memset(bytes, (uint8_t)levels->offset, padding * width);
}
ON_EVERY_CPU(void, group_to_levels,
             (const float *frames, ptrdiff_t num_frames, ptrdiff_t pitch, ptrdiff_t width,
              ptrdiff_t padding, const Levels *levels, uint8_t *bytes, float *span),
             (frames, num_frames, pitch, width, padding, levels, bytes, span))

/* A layer for each group, whose inputs are the frames that the kernel covers, one behind another; their
 * levels are of one scale for all of the group's. Returns 1 where memory is at its end. */
int convolve_groups(const Layer *layers, const Convolution *by, const float *frames,
                    ptrdiff_t num_frames, ptrdiff_t num_outputs, float *out) {
    const ptrdiff_t in = layers->weights.in / by->kernel, width = layers->weights.out;
    const ptrdiff_t size = (num_frames + 2 * by->padding) * in + READ_BEHIND;
    uint8_t *bytes = malloc(by->groups * size);
    float *spans = malloc(by->groups * num_outputs * sizeof(float));
    const int failed = !bytes || !spans;
    if (!failed)
        _Pragma("omp parallel") {
            _Pragma("omp for schedule(static)")
            for (ptrdiff_t group = 0; group < by->groups; group++) {
                float span;
                group_to_levels(frames + group * in, num_frames, by->groups * in, in, by->padding,
                                &layers->levels, bytes + group * size, &span);
                for (ptrdiff_t i = 0; i < num_outputs; i++)
                    spans[group * num_outputs + i] = span;
            }
            for (ptrdiff_t group = 0; group < by->groups; group++)
                multiply_rows(layers + group, bytes + group * size, by->stride * in,
                              spans + group * num_outputs, 0, num_outputs, 0, out + group * width,
                              by->groups * width);
        }
    free(bytes), free(spans);
    return failed;
}
