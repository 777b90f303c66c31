/* Self-attention of one utterance after another: for each head and some queries the scores with all
 * keys, their softmax and the weighted values, while all of it is in the cache. Products are of floats,
 * or of words, whole numbers of 16 bits: queries and keys of 12 or 13, weights of 15, values of 10.
 * attention.py calls it, and says what it gives. */
#include "attention.h"
#include "multiply.h"
#include "rows.h"

#define MOST_QUERIES 24 /* for which a panel of keys stays in the first cache */
#define VALUE_LEVELS 1023
#define WEIGHT_LEVELS INT16_MAX
#define SUM_OF_WEIGHTS (1 << 21) /* of a query: times the largest value still in 32 bits */
#define MOST_FRAMES_IN_WORDS (INT32_MAX / WEIGHT_LEVELS)
#define LOWEST -3e38f

INLINE ptrdiff_t least(ptrdiff_t one, ptrdiff_t other) { return one < other ? one : other; }

/* Rows of scores go on to whole vectors of words: what is left over would take as long as the rest of a
 * short utterance. */
#define WHOLE_ROW (2 * MOST_LANES)
INLINE ptrdiff_t whole_row(ptrdiff_t num_keys) {
    return (num_keys + WHOLE_ROW - 1) & -(ptrdiff_t)WHOLE_ROW;
}

/* The same for every head */
typedef struct {
    const Multiplier *by;
    int in_words;
    ptrdiff_t most_columns; /* of a panel */
    ptrdiff_t num_frames, dim;
    ptrdiff_t frames_up, dim_up;        /* whole vectors */
    ptrdiff_t row;                      /* of scores or weights */
    ptrdiff_t dim_groups, frame_groups; /* that scores and weighted values are summed over */
    float query_levels;                 /* of words, above 0 */
} Shape;

/* What a thread needs, and keys and values of the head that it is at */
typedef struct {
    int32_t *keys;     /* panels of (dim_groups, columns) one behind another */
    int32_t *values;   /* panels of (frame_groups, columns) */
    int32_t *queries;  /* (queries, dim_groups), scaled */
    float *scores;     /* (queries, row), then powers of 2 of them */
    int16_t *weights;  /* words alone: (queries, row) */
    float *attended;   /* (queries, dim_up), sums */
    int16_t *words;    /* rows of a panel of keys, or two of values */
    int32_t *spans;    /* (dim,) */
    float key_step, value_step; /* of words */
} Workspace;

static Shape shape_of(ptrdiff_t num_frames, ptrdiff_t dim, int most_bits, int in_words) {
    const int fits = num_frames <= MOST_FRAMES_IN_WORDS;
    const Multiplier *of_words = in_words && fits ? words_multiplier(most_bits) : NULL;
    Shape shape = {.by = of_words ? of_words : floats_multiplier_of_any(most_bits),
                   .in_words = of_words != NULL, .num_frames = num_frames, .dim = dim};
    shape.most_columns = shape.by->most_vectors * shape.by->lanes;
    shape.frames_up = rounded_up(num_frames, shape.by->lanes);
    shape.row = whole_row(num_frames);
    shape.dim_up = rounded_up(dim, shape.by->lanes);
    shape.dim_groups = rounded_up(dim * shape.by->size, GROUP) / GROUP;
    shape.frame_groups = rounded_up(num_frames * shape.by->size, GROUP) / GROUP;
    /* so that sums of `dim` products fit into 32 bits */
    const float levels = __builtin_sqrtf((float)INT32_MAX / dim) - 1;
    shape.query_levels = levels < INT16_MAX ? levels : INT16_MAX;
    return shape;
}

static void *workspace_of(Workspace *work, const Shape *shape) {
    ptrdiff_t sizes[] = {shape->dim_groups * shape->frames_up,
                         shape->frame_groups * shape->dim_up,
                         MOST_QUERIES * shape->dim_groups,
                         MOST_QUERIES * shape->row,
                         shape->in_words ? MOST_QUERIES * shape->row / 2 : 0,
                         MOST_QUERIES * shape->dim_up,
                         shape->in_words ? shape->most_columns * shape->dim_groups : 0, shape->dim};
    ptrdiff_t total = 0;
    for (int i = 0; i < 8; i++)
        total += sizes[i] = rounded_up(sizes[i], LINE / GROUP);
    char *memory = zeroed(total * GROUP), *next = memory;
    void *parts[8];
    for (int i = 0; i < 8; next += sizes[i++] * GROUP)
        parts[i] = next;
    work->keys = parts[0], work->values = parts[1], work->queries = parts[2];
    work->scores = parts[3], work->weights = parts[4], work->attended = parts[5];
    work->words = parts[6], work->spans = parts[7];
    return memory;
}

/* Rows of groups, transposed */
INLINE void transpose_any(const int32_t *rows, ptrdiff_t stride, ptrdiff_t num_rows,
                          ptrdiff_t groups, int32_t *out, ptrdiff_t columns) {
    for (ptrdiff_t i = 0; i < groups; i++)
        for (ptrdiff_t row = 0; row < num_rows; row++)
            out[i * columns + row] = rows[row * stride + i];
}
ON_EVERY_CPU(void, transpose,
             (const int32_t *rows, ptrdiff_t stride, ptrdiff_t num_rows, ptrdiff_t groups,
              int32_t *out, ptrdiff_t columns),
             (rows, stride, num_rows, groups, out, columns))

/* The largest number of some rows without its sign; NaN is larger than all others */
INLINE float span_of_rows_any(const float *rows, ptrdiff_t stride, ptrdiff_t num_rows,
                              ptrdiff_t width, int32_t *of_columns) {
    int32_t largest = 0;
    memset(of_columns, 0, width * sizeof(int32_t));
    for (ptrdiff_t row = 0; row < num_rows; row++, rows += stride)
        for (ptrdiff_t i = 0; i < width; i++) {
            const int32_t bits = bits_without_sign(rows[i]);
            of_columns[i] = bits > of_columns[i] ? bits : of_columns[i];
        }
    for (ptrdiff_t i = 0; i < width; i++)
        largest = of_columns[i] > largest ? of_columns[i] : largest;
    return larger_span(with_bits(largest), SMALLEST_SPAN);
}
ON_EVERY_CPU(float, span_of_rows,
             (const float *rows, ptrdiff_t stride, ptrdiff_t num_rows, ptrdiff_t width,
              int32_t *of_columns),
             (rows, stride, num_rows, width, of_columns))

INLINE void row_to_words_any(const float *row, ptrdiff_t width, float scale, int16_t *out) {
    for (ptrdiff_t i = 0; i < width; i++)
        out[i] = (int16_t)(int32_t)__builtin_rintf(row[i] * scale);
}
ON_EVERY_CPU(void, row_to_words, (const float *row, ptrdiff_t width, float scale, int16_t *out),
             (row, width, scale, out))

/* Two rows become one of pairs */
INLINE void pair_any(const int16_t *first, const int16_t *second, ptrdiff_t width, int16_t *out) {
    for (ptrdiff_t i = 0; i < width; i++) {
        out[2 * i] = first[i];
        out[2 * i + 1] = second[i];
    }
}
ON_EVERY_CPU(void, pair,
             (const int16_t *first, const int16_t *second, ptrdiff_t width, int16_t *out),
             (first, second, width, out))

INLINE void scale_row_any(const float *row, ptrdiff_t width, float scale, float *out) {
    for (ptrdiff_t i = 0; i < width; i++)
        out[i] = row[i] * scale;
}
ON_EVERY_CPU(void, scale_row, (const float *row, ptrdiff_t width, float scale, float *out),
             (row, width, scale, out))

/* Of words' sums, which lie where floats do */
INLINE void scale_sums_any(const float *sums, ptrdiff_t width, float scale, float *out) {
    for (ptrdiff_t i = 0; i < width; i++)
        out[i] = bits_of(sums[i]) * scale;
}
ON_EVERY_CPU(void, scale_sums, (const float *sums, ptrdiff_t width, float scale, float *out),
             (sums, width, scale, out))

/* Scores, of products with queries that are scaled, and the largest of them; or no number where one of them
 * is none. Words' sums, which lie where floats do, `step` makes scores. The rest of the row weighs nothing. */
INLINE float to_scores_any(float *products, const int in_words, float step, const float *bias,
                           ptrdiff_t num_keys) {
    const ptrdiff_t width = whole_row(num_keys);
    float largest = LOWEST, all = step;
    for (ptrdiff_t i = num_keys; i < width; i++)
        products[i] = 0;
    if (in_words)
        for (ptrdiff_t i = 0; i < width; i++)
            products[i] = bits_of(products[i]) * step;
    if (bias)
        for (ptrdiff_t i = 0; i < num_keys; i++)
            products[i] += bias[i] * LOG2_OF_E;
    if (!in_words || bias)
        for (ptrdiff_t i = 0; i < width; i++)
            all += products[i];
    for (ptrdiff_t i = num_keys; i < width; i++)
        products[i] = LOWEST;
    for (ptrdiff_t i = 0; i < width; i++)
        largest = products[i] > largest ? products[i] : largest;
    return is_finite(all) ? largest : with_bits(NO_NUMBER);
}

/* Powers of 2 of scores, less the largest, and the sum of them all, which is no number where one of them
 * is none */
INLINE float exp2_row_any(float *scores, const float *bias, ptrdiff_t num_keys) {
    const ptrdiff_t width = whole_row(num_keys);
    const float largest = to_scores_any(scores, 0, 0, bias, num_keys);
    if (!is_finite(largest))
        return largest;
    float sum = 0;
    for (ptrdiff_t i = 0; i < width; i++) {
        scores[i] = exp2_of_negative(scores[i] - largest);
        sum += scores[i];
    }
    return sum;
}
ON_EVERY_CPU(float, exp2_row, (float *scores, const float *bias, ptrdiff_t num_keys),
             (scores, bias, num_keys))

/* What is not below 0, rounded */
INLINE int32_t write_word(float number, int16_t *out) {
    const int32_t word = (int32_t)(number + 0.5f);
    *out = (int16_t)word;
    return word;
}

/* The same as words; those of many keys that weigh alike are made smaller, so that their sum fits */
INLINE float exp2_row_to_words_any(float *scores, float step, const float *bias,
                                   ptrdiff_t num_keys, int16_t *out) {
    const ptrdiff_t width = whole_row(num_keys);
    const float largest = to_scores_any(scores, 1, step, bias, num_keys);
    if (!is_finite(largest))
        return largest;
    int32_t sum = 0;
    for (ptrdiff_t i = 0; i < width; i++) {
        const float weight = exp2_of_negative(scores[i] - largest);
        sum += write_word(weight * WEIGHT_LEVELS, out + i);
    }
    if (sum <= SUM_OF_WEIGHTS)
        return sum;
    const float scale = (float)(SUM_OF_WEIGHTS - num_keys) / sum;
    sum = 0;
    for (ptrdiff_t i = 0; i < width; i++)
        sum += write_word(out[i] * scale, out + i);
    return sum;
}
ON_EVERY_CPU(float, exp2_row_to_words,
             (float *scores, float step, const float *bias, ptrdiff_t num_keys, int16_t *out),
             (scores, step, bias, num_keys, out))

static void take_keys(Workspace *work, const Shape *shape, const float *keys, ptrdiff_t stride) {
    const ptrdiff_t groups = shape->dim_groups, width = groups * GROUP / shape->by->size;
    float scale = 0;
    if (shape->in_words) {
        const float span = span_of_rows(keys, stride, shape->num_frames, shape->dim, work->spans);
        scale = shape->query_levels / span, work->key_step = span / shape->query_levels;
    }
    for (ptrdiff_t first = 0; first < shape->frames_up; first += shape->most_columns) {
        const ptrdiff_t columns = least(shape->frames_up - first, shape->most_columns);
        const ptrdiff_t rows = least(shape->num_frames - first, columns);
        const void *from = keys + first * stride;
        ptrdiff_t pitch = stride;
        if (shape->in_words) {
            for (ptrdiff_t row = 0; row < rows; row++)
                row_to_words(keys + (first + row) * stride, shape->dim, scale,
                             work->words + row * width);
            from = work->words, pitch = groups;
        }
        transpose(from, pitch, rows, groups, work->keys + first * groups, columns);
    }
}

static void take_values(Workspace *work, const Shape *shape, const float *values,
                        ptrdiff_t stride) {
    const ptrdiff_t dim = shape->dim;
    float scale = 0;
    if (shape->in_words) {
        const float span = span_of_rows(values, stride, shape->num_frames, dim, work->spans);
        scale = VALUE_LEVELS / span, work->value_step = span / VALUE_LEVELS;
    }
    for (ptrdiff_t group = 0; group < shape->frame_groups; group++) {
        int16_t *words = work->words;
        const float *row = values + group * (shape->in_words ? 2 : 1) * stride;
        if (shape->in_words) {
            memset(words + dim, 0, dim * sizeof(int16_t));
            row_to_words(row, dim, scale, words);
            if (2 * group + 1 < shape->num_frames)
                row_to_words(row + stride, dim, scale, words + dim);
        }
        for (ptrdiff_t first = 0; first < dim; first += shape->most_columns) {
            const ptrdiff_t columns = least(shape->dim_up - first, shape->most_columns);
            const ptrdiff_t width = least(dim - first, columns);
            int32_t *to = work->values + first * shape->frame_groups + group * columns;
            if (shape->in_words)
                pair(words + first, words + dim + first, width, (int16_t *)to);
            else
                memcpy(to, row + first, width * sizeof(float));
        }
    }
}

/* Scaled, so that products with keys are scores in powers of 2; or what makes scores of the products */
static float take_queries(Workspace *work, const Shape *shape, const float *queries,
                          ptrdiff_t stride, ptrdiff_t num_queries) {
    const float scale = LOG2_OF_E / __builtin_sqrtf((float)shape->dim);
    if (!shape->in_words) {
        for (ptrdiff_t row = 0; row < num_queries; row++)
            scale_row(queries + row * stride, shape->dim, scale,
                      (float *)(work->queries + row * shape->dim_groups));
        return 0;
    }
    const float span = span_of_rows(queries, stride, num_queries, shape->dim, work->spans);
    for (ptrdiff_t row = 0; row < num_queries; row++)
        row_to_words(queries + row * stride, shape->dim, shape->query_levels / span,
                     (int16_t *)(work->queries + row * shape->dim_groups));
    return span / shape->query_levels * work->key_step * scale;
}

/* Sums of products of `rows` (num_rows, groups), `stride` groups apart, and panels of (groups, columns),
 * in rows `pitch` apart */
static void multiply(const Shape *shape, const void *rows, ptrdiff_t stride, ptrdiff_t num_rows,
                     const int32_t *panels, ptrdiff_t groups, ptrdiff_t columns_up, float *sums,
                     ptrdiff_t pitch) {
    static const int32_t zeros[MOST_VECTORS * MOST_LANES];
    const Sums from = {(void *)zeros, 0};
    for (ptrdiff_t first = 0; first < columns_up; first += shape->most_columns) {
        const ptrdiff_t columns = least(columns_up - first, shape->most_columns);
        const ptrdiff_t vectors = columns / shape->by->lanes;
        const uint8_t *panel = (const uint8_t *)(panels + first * groups);
        for (ptrdiff_t row = 0; row < num_rows; row += MOST_ROWS)
            shape->by->tiles[least(num_rows - row, MOST_ROWS) - 1][vectors - 1](
                (const uint8_t *)rows + row * stride * GROUP, stride * GROUP, panel, groups, panel,
                0, from, (Sums){sums + row * pitch + first, pitch * GROUP});
    }
}

/* For some queries; `bias` is (queries, frames) or NULL */
static void attend_some(Workspace *work, const Shape *shape, const float *queries,
                        ptrdiff_t stride, ptrdiff_t num_queries, const float *bias, float *out,
                        ptrdiff_t out_stride) {
    const ptrdiff_t num_frames = shape->num_frames;
    const float step = take_queries(work, shape, queries, stride, num_queries);
    multiply(shape, work->queries, shape->dim_groups, num_queries, work->keys,
             shape->dim_groups, shape->frames_up, work->scores, shape->row);
    float sums[MOST_QUERIES]; /* of weights */
    for (ptrdiff_t i = 0; i < num_queries; i++) {
        float *scores = work->scores + i * shape->row;
        const float *of_query = bias ? bias + i * num_frames : NULL;
        sums[i] = shape->in_words ? exp2_row_to_words(scores, step, of_query, num_frames,
                                                      work->weights + i * shape->row)
                                  : exp2_row(scores, of_query, num_frames);
    }
    const void *weights = shape->in_words ? (const void *)work->weights : work->scores;
    multiply(shape, weights, shape->row * shape->by->size / GROUP, num_queries, work->values,
             shape->frame_groups, shape->dim_up, work->attended, shape->dim_up);
    for (ptrdiff_t row = 0; row < num_queries; row++, out += out_stride) {
        const float *attended = work->attended + row * shape->dim_up;
        if (shape->in_words)
            scale_sums(attended, shape->dim, work->value_step / sums[row], out);
        else
            scale_row(attended, shape->dim, 1.0f / sums[row], out);
    }
}

int attend(const float *queries, const float *keys, const float *values, ptrdiff_t stride,
           ptrdiff_t head_stride, ptrdiff_t num_heads, ptrdiff_t num_frames, ptrdiff_t dim,
           const float *bias, float *out, ptrdiff_t out_stride, ptrdiff_t num_threads,
           int most_bits, int in_words) {
    const Shape shape = shape_of(num_frames, dim, most_bits, in_words);
    const ptrdiff_t num_blocks = parts_of(num_frames, MOST_QUERIES);
    /* a head is one task, or several where there are fewer heads than threads could share evenly */
    ptrdiff_t num_parts = num_heads % num_threads == 0 ? 1 : 2 * num_threads / num_heads + 1;
    num_parts = least(num_parts, num_blocks);
    int failed = 0;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
        Workspace work = {0};
        void *memory = workspace_of(&work, &shape);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (ptrdiff_t task = 0; task < num_heads * num_parts; task++) {
            if (!memory)
                continue;
            const ptrdiff_t head = task / num_parts, part = task % num_parts;
            take_keys(&work, &shape, keys + head * head_stride, stride);
            take_values(&work, &shape, values + head * head_stride, stride);
            const ptrdiff_t end = beginning(num_blocks, part + 1, num_parts);
            for (ptrdiff_t block = beginning(num_blocks, part, num_parts); block < end; block++) {
                const ptrdiff_t query = beginning(num_frames, block, num_blocks);
                attend_some(&work, &shape, queries + query * stride + head * head_stride, stride,
                            beginning(num_frames, block + 1, num_blocks) - query,
                            bias ? bias + (head * num_frames + query) * num_frames : NULL,
                            out + query * out_stride + head * dim, out_stride);
            }
        }
        free(memory);
    }
    return failed;
}
