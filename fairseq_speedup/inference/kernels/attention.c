/* Self-attention of one utterance after another, in fp32: for each head and a few queries the
 * scores with all keys, their softmax and the weighted values, while all of it is in the cache.
 * attention.py calls it, and says what it gives. */
#include "attention.h"

/* C (rows, columns) = A (rows, depth) B (depth, columns), B contiguous: the tile of products that
 * stays in registers. Two vectors wide, and so many rows that loading costs less than multiplying. */
typedef void Tile(const float *a, ptrdiff_t a_stride, const float *b, ptrdiff_t depth, float *c,
                  ptrdiff_t c_stride);

#define DEFINE_TILE(NAME, ATTRIBUTES, LANES, ROWS)                                               \
    ATTRIBUTES static void NAME(const float *a, ptrdiff_t a_stride, const float *b,              \
                                ptrdiff_t depth, float *c, ptrdiff_t c_stride) {                 \
        typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));     \
        Vector sums[ROWS][2] = {0};                                                              \
        for (ptrdiff_t k = 0; k < depth; k++) {                                                  \
            Vector left = *(const Vector *)(b + k * 2 * LANES);                                  \
            Vector right = *(const Vector *)(b + k * 2 * LANES + LANES);                         \
            _Pragma("GCC unroll 16") for (int row = 0; row < ROWS; row++) {                      \
                float each = a[row * a_stride + k];                                              \
                sums[row][0] += each * left;                                                     \
                sums[row][1] += each * right;                                                    \
            }                                                                                    \
        }                                                                                        \
        _Pragma("GCC unroll 16") for (int row = 0; row < ROWS; row++) {                          \
            *(Vector *)(c + row * c_stride) = sums[row][0];                                      \
            *(Vector *)(c + row * c_stride + LANES) = sums[row][1];                              \
        }                                                                                        \
    }

#define MOST_ROWS 12

#if defined(__x86_64__)
DEFINE_TILE(tile_of_512_bits, OF_512_BITS, 16, 12)
DEFINE_TILE(tile_of_256_bits, OF_256_BITS, 8, 6)
#endif
DEFINE_TILE(tile_of_128_bits, , 4, 4)

typedef struct {
    Tile *multiply;
    int rows, columns;
} Kernel;

static Kernel kernel_here(int most_bits) {
    const int bits = vector_bits_within(most_bits);
#if defined(__x86_64__)
    if (bits >= 512)
        return (Kernel){tile_of_512_bits, 12, 32};
    if (bits >= 256)
        return (Kernel){tile_of_256_bits, 6, 16};
#endif
    (void)bits;
    return (Kernel){tile_of_128_bits, 4, 8};
}

/* As many rows as a tile has columns, transposed; or fewer */
INLINE void transpose_any(const float *rows, ptrdiff_t stride, ptrdiff_t num_rows,
                          ptrdiff_t width, float *out, ptrdiff_t columns) {
    for (ptrdiff_t i = 0; i < width; i++)
        for (ptrdiff_t row = 0; row < num_rows; row++)
            out[i * columns + row] = rows[row * stride + i];
}
ON_EVERY_CPU(void, transpose,
             (const float *rows, ptrdiff_t stride, ptrdiff_t num_rows,
              ptrdiff_t width, float *out, ptrdiff_t columns),
             (rows, stride, num_rows, width, out, columns))

/* exp of scores, less the largest, and the sum of them all */
INLINE float exp_row_any(float *scores, const float *bias, ptrdiff_t num_keys) {
    if (bias)
        for (ptrdiff_t i = 0; i < num_keys; i++)
            scores[i] += bias[i];
    float largest = scores[0], sum = 0;
    for (ptrdiff_t i = 0; i < num_keys; i++)
        largest = scores[i] > largest ? scores[i] : largest;
    for (ptrdiff_t i = 0; i < num_keys; i++) {
        scores[i] = exp_of_negative(scores[i] - largest);
        sum += scores[i];
    }
    return sum;
}
ON_EVERY_CPU(float, exp_row,
             (float *scores, const float *bias, ptrdiff_t num_keys),
             (scores, bias, num_keys))

INLINE void scale_row_any(const float *row, ptrdiff_t width, float scale, float *out) {
    for (ptrdiff_t i = 0; i < width; i++)
        out[i] = row[i] * scale;
}
ON_EVERY_CPU(void, scale_row,
             (const float *row, ptrdiff_t width, float scale, float *out),
             (row, width, scale, out))

/* What a thread needs, and keys and values of the head that it is at. */
typedef struct {
    float *keys;    /* (num_keys / columns of a tile, dim, columns): a tile's one behind another */
    float *values;  /* (dim / columns, num_keys, columns) */
    float *queries; /* (rows of a tile, dim), scaled */
    float *scores;  /* (rows of a tile, num_keys rounded up) */
    float *attended;
    ptrdiff_t num_keys_up, dim_up;
} Workspace;

static float *workspace_of(Workspace *work, const Kernel *kernel, ptrdiff_t num_frames,
                           ptrdiff_t dim) {
    work->num_keys_up = rounded_up(num_frames, kernel->columns);
    work->dim_up = rounded_up(dim, kernel->columns);
    ptrdiff_t sizes[] = {dim * work->num_keys_up, num_frames * work->dim_up, kernel->rows * dim,
                         kernel->rows * work->num_keys_up, kernel->rows * work->dim_up};
    ptrdiff_t total = 0;
    for (int i = 0; i < 5; i++)
        total += sizes[i] = rounded_up(sizes[i], LINE / sizeof(float));
    float *memory = zeroed(total * sizeof(float));
    work->keys = memory;
    work->values = work->keys + sizes[0];
    work->queries = work->values + sizes[1];
    work->scores = work->queries + sizes[2];
    work->attended = work->scores + sizes[3];
    return memory;
}

static void take_head(Workspace *work, const Kernel *kernel, const float *keys,
                      const float *values, ptrdiff_t stride, ptrdiff_t num_frames, ptrdiff_t dim) {
    const ptrdiff_t columns = kernel->columns;
    for (ptrdiff_t key = 0; key < num_frames; key += columns) {
        ptrdiff_t rest = num_frames - key;
        transpose(keys + key * stride, stride, rest < columns ? rest : columns, dim,
                  work->keys + key * dim, columns);
    }
    for (ptrdiff_t i = 0; i < dim; i += columns) {
        size_t size = (dim - i < columns ? dim - i : columns) * sizeof(float);
        for (ptrdiff_t frame = 0; frame < num_frames; frame++)
            memcpy(work->values + i * num_frames + frame * columns, values + frame * stride + i,
                   size);
    }
}

/* `num_queries`, at most a tile's rows; rows beyond them hold what was there before. */
static void attend_tile(const Workspace *work, const Kernel *kernel, const float *queries,
                        ptrdiff_t stride, ptrdiff_t num_queries, const float *bias,
                        ptrdiff_t num_frames, ptrdiff_t dim, float *out, ptrdiff_t out_stride) {
    float scale = 1.0f / __builtin_sqrtf((float)dim), sums[MOST_ROWS];
    for (ptrdiff_t row = 0; row < num_queries; row++)
        scale_row(queries + row * stride, dim, scale, work->queries + row * dim);
    for (ptrdiff_t key = 0; key < work->num_keys_up; key += kernel->columns)
        kernel->multiply(work->queries, dim, work->keys + key * dim, dim, work->scores + key,
                         work->num_keys_up);
    for (ptrdiff_t row = 0; row < num_queries; row++)
        sums[row] = exp_row(work->scores + row * work->num_keys_up,
                            bias ? bias + row * num_frames : NULL, num_frames);
    for (ptrdiff_t i = 0; i < work->dim_up; i += kernel->columns)
        kernel->multiply(work->scores, work->num_keys_up, work->values + i * num_frames,
                         num_frames, work->attended + i, work->dim_up);
    for (ptrdiff_t row = 0; row < num_queries; row++)
        scale_row(work->attended + row * work->dim_up, dim, 1.0f / sums[row],
                  out + row * out_stride);
}

int attend(const float *queries, const float *keys, const float *values, ptrdiff_t stride,
           ptrdiff_t head_stride, ptrdiff_t num_heads, ptrdiff_t num_frames, ptrdiff_t dim,
           const float *bias, float *out, ptrdiff_t out_stride, ptrdiff_t num_threads,
           int most_bits) {
    const Kernel kernel = kernel_here(most_bits);
    ptrdiff_t num_tiles = (num_frames + kernel.rows - 1) / kernel.rows;
    /* a head is one task, or several where there are fewer heads than threads could share evenly */
    ptrdiff_t num_parts = num_heads % num_threads == 0 ? 1 : 2 * num_threads / num_heads + 1;
    num_parts = num_parts < num_tiles ? num_parts : num_tiles;
    int failed = 0;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
        Workspace work;
        float *memory = workspace_of(&work, &kernel, num_frames, dim);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (ptrdiff_t task = 0; task < num_heads * num_parts; task++) {
            if (!memory)
                continue;
            ptrdiff_t head = task / num_parts, part = task % num_parts;
            ptrdiff_t begin = part * num_tiles / num_parts * kernel.rows;
            ptrdiff_t end = (part + 1) * num_tiles / num_parts * kernel.rows;
            end = end < num_frames ? end : num_frames;
            take_head(&work, &kernel, keys + head * head_stride, values + head * head_stride,
                      stride, num_frames, dim);
            for (ptrdiff_t query = begin; query < end; query += kernel.rows) {
                ptrdiff_t rest = end - query;
                attend_tile(&work, &kernel, queries + query * stride + head * head_stride, stride,
                            rest < kernel.rows ? rest : kernel.rows,
                            bias ? bias + (head * num_frames + query) * num_frames : NULL,
                            num_frames, dim, out + query * out_stride + head * dim, out_stride);
            }
        }
        free(memory);
    }
    return failed;
}
