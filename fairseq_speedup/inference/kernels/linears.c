/* Linear layers in fp32, and with int8 weights and inputs of a byte by the instruction that sums four
 * products of them (VNNI), both with AVX-512: with what comes before and after, by one team of
 * threads. Weights are fetched from memory ahead of their turn, as an utterance's few frames do not
 * give enough to do while they come. linears.py calls it, and says what each function gives. */
#include "rows.h"

#define GROUP 4     /* bytes of inputs that are multiplied at once: a float, or four bytes */
#define LANES 16    /* sums in a vector */
#define MOST_ROWS 6 /* of a tile: what stays in registers */
#define MOST_VECTORS 4
#define MOST_GROUPS 768       /* whose weights are taken at once */
#define BLOCK (1 << 19)       /* bytes of rows that stay in the second cache */
#define SHARED_FROM (1 << 17) /* multiplications: fewer are not worth a second thread */

/* Weights lie as they are taken: of some groups of inputs after others panels of up to MOST_VECTORS
 * vectors of outputs, in each group after group those of an output side by side. */
typedef struct {
    const uint8_t *packed;
    ptrdiff_t in, out, size; /* size of one: of an int8 or a float */
} Weights;

INLINE ptrdiff_t groups_of(const Weights *weights) {
    return rounded_up(weights->in * weights->size, GROUP) / GROUP;
}

INLINE ptrdiff_t vectors_of(const Weights *weights) {
    return rounded_up(weights->out, LANES) / LANES;
}

INLINE ptrdiff_t parts_of(ptrdiff_t whole, ptrdiff_t most) { return rounded_up(whole, most) / most; }

/* Where the `part`-th of `parts` parts of `whole` begins, which are alike but for one */
INLINE ptrdiff_t beginning(ptrdiff_t whole, ptrdiff_t part, ptrdiff_t parts) {
    return whole * part / parts;
}

ptrdiff_t packed_size(ptrdiff_t in, ptrdiff_t out, ptrdiff_t size) {
    const Weights weights = {NULL, in, out, size};
    return vectors_of(&weights) * LANES * groups_of(&weights) * GROUP;
}

void pack(const uint8_t *rows, ptrdiff_t in, ptrdiff_t out, ptrdiff_t size, uint8_t *packed) {
    const Weights weights = {packed, in, out, size};
    const ptrdiff_t groups = groups_of(&weights), vectors = vectors_of(&weights);
    const ptrdiff_t parts = parts_of(groups, MOST_GROUPS), panels = parts_of(vectors, MOST_VECTORS);
    for (ptrdiff_t part = 0; part < parts; part++)
        for (ptrdiff_t panel = 0; panel < panels; panel++) {
            ptrdiff_t first = beginning(vectors, panel, panels) * LANES;
            ptrdiff_t last = beginning(vectors, panel + 1, panels) * LANES;
            ptrdiff_t end = beginning(groups, part + 1, parts);
            for (ptrdiff_t group = beginning(groups, part, parts); group < end; group++)
                for (ptrdiff_t column = first; column < last; column++, packed += GROUP) {
                    ptrdiff_t rest = in * size - group * GROUP;
                    memset(packed, 0, GROUP);
                    if (column < out)
                        memcpy(packed, rows + column * in * size + group * GROUP,
                               rest < GROUP ? rest : GROUP);
                }
        }
}

/* What is known of a layer before its inputs are. Sums of products begin with `starts`: in fp32 that
 * is the bias; of bytes, the column's scale and `step` of the row's span make the output of a sum,
 * with the bias added. */
typedef struct {
    Weights weights;
    const void *starts;
    const float *scales, *bias; /* NULL in fp32 */
    Levels levels;              /* of its inputs */
    float step;
} Layer;

/* Rows of frames; or of bytes, with their spans, where there are no frames */
typedef struct {
    const float *frames;
    ptrdiff_t stride, count;
    const uint8_t *bytes;
    const float *spans;
} Rows;

/* What is made of outputs, in this order, of what there is: `residual` is added; what is normalised
 * of that goes to `normalised`, or else in its place; the GELU; of what was not normalised, levels. */
typedef struct {
    const float *residual;
    Norm norm;
    float *normalised;
    const Levels *levels;
    uint8_t *bytes;
    float *spans;
    int32_t gelu;
} After;

#if defined(__x86_64__)
#include <immintrin.h>
#define OF_VNNI __attribute__((target(WITH_512_BITS ",avx512vnni")))

#define EACH_VECTOR _Pragma("GCC unroll 4") for (int vector = 0; vector < num_vectors; vector++)
#define EACH_ROW _Pragma("GCC unroll 6") for (int row = 0; row < num_rows; row++)

/* gcc copies the sums before each of its own _mm512_dpbusd_epi32, and spills them */
INLINE OF_VNNI __m512i add_bytes(__m512i sums, __m512i row, __m512i weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(row), "v"(weights));
    return sums;
}

INLINE OF_512_BITS __m512i add_floats(__m512i sums, __m512i row, __m512i weights) {
    return _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(row),
                                               _mm512_castsi512_ps(weights),
                                               _mm512_castsi512_ps(sums)));
}

/* To `sums` what groups of some rows and a panel of columns add, rows and vectors of columns as many
 * as are known when it is compiled. `ahead` is fetched, `stride_ahead` bytes of it for each group. */
#define TILE_BODY(ADD)                                                                   \
    __m512i kept[MOST_ROWS][MOST_VECTORS], weights[MOST_VECTORS];                        \
    EACH_ROW EACH_VECTOR kept[row][vector] =                                             \
        _mm512_loadu_si512(sums + (row * num_vectors + vector) * LANES);                 \
    for (ptrdiff_t group = 0; group < groups; group++) {                                 \
        EACH_VECTOR weights[vector] = _mm512_loadu_si512(panel + vector * LANES * GROUP); \
        panel += num_vectors * LANES * GROUP;                                            \
        _mm_prefetch((const char *)ahead, _MM_HINT_T1);                                  \
        _mm_prefetch((const char *)ahead + stride_ahead / 2, _MM_HINT_T1);               \
        ahead += stride_ahead;                                                           \
        EACH_ROW {                                                                       \
            int32_t inputs;                                                              \
            memcpy(&inputs, rows + row * stride + group * GROUP, GROUP);                 \
            const __m512i of_row = _mm512_set1_epi32(inputs);                            \
            EACH_VECTOR kept[row][vector] = ADD(kept[row][vector], of_row, weights[vector]); \
        }                                                                                \
    }                                                                                    \
    EACH_ROW EACH_VECTOR                                                                 \
    _mm512_storeu_si512(sums + (row * num_vectors + vector) * LANES, kept[row][vector])
#define TILE_PARAMETERS                                                                    \
    const uint8_t *rows, ptrdiff_t stride, const uint8_t *panel, ptrdiff_t groups,         \
        const uint8_t *ahead, ptrdiff_t stride_ahead, int32_t *sums

INLINE OF_VNNI void multiply_bytes(const int num_rows, const int num_vectors, TILE_PARAMETERS) {
    TILE_BODY(add_bytes);
}

INLINE OF_512_BITS void multiply_floats(const int num_rows, const int num_vectors,
                                        TILE_PARAMETERS) {
    TILE_BODY(add_floats);
}

typedef void Tile(TILE_PARAMETERS);

#define DEFINE_TILE(OF, ROWS, VECTORS)                                             \
    static void tile_of_##OF##_##ROWS##_##VECTORS(TILE_PARAMETERS) {               \
        multiply_##OF(ROWS, VECTORS, rows, stride, panel, groups, ahead, stride_ahead, sums); \
    }
#define DEFINE_ROWS(ATTRIBUTES, OF, ROWS)           \
    ATTRIBUTES DEFINE_TILE(OF, ROWS, 1)             \
    ATTRIBUTES DEFINE_TILE(OF, ROWS, 2)             \
    ATTRIBUTES DEFINE_TILE(OF, ROWS, 3)             \
    ATTRIBUTES DEFINE_TILE(OF, ROWS, 4)
#define NAMES(OF, ROWS)                                                  \
    {tile_of_##OF##_##ROWS##_1, tile_of_##OF##_##ROWS##_2, tile_of_##OF##_##ROWS##_3, \
     tile_of_##OF##_##ROWS##_4}
#define DEFINE_TILES(ATTRIBUTES, OF)                                                   \
    DEFINE_ROWS(ATTRIBUTES, OF, 1)                                                     \
    DEFINE_ROWS(ATTRIBUTES, OF, 2)                                                     \
    DEFINE_ROWS(ATTRIBUTES, OF, 3)                                                     \
    DEFINE_ROWS(ATTRIBUTES, OF, 4)                                                     \
    DEFINE_ROWS(ATTRIBUTES, OF, 5)                                                     \
    DEFINE_ROWS(ATTRIBUTES, OF, 6)                                                     \
    static Tile *const tiles_of_##OF[MOST_ROWS][MOST_VECTORS] = {                      \
        NAMES(OF, 1), NAMES(OF, 2), NAMES(OF, 3), NAMES(OF, 4), NAMES(OF, 5), NAMES(OF, 6)};

DEFINE_TILES(OF_VNNI, bytes)
DEFINE_TILES(OF_512_BITS, floats)

/* Outputs of the sums, of `columns` columns from `column` on */
OF_512_BITS static void finish_sums(const int32_t *sums, const Layer *layer, float span,
                                    int with_gelu, ptrdiff_t column, ptrdiff_t columns,
                                    float *out) {
    if (layer->scales) {
        const float *scales = layer->scales + column, *bias = layer->bias + column;
        for (ptrdiff_t i = 0; i < columns; i++)
            out[i] = sums[i] * scales[i] * (span * layer->step) + bias[i];
    } else
        memcpy(out, sums, columns * sizeof(float));
    if (with_gelu)
        gelu(out, columns);
}

/* The tiles of some rows: every thread calls it, and has as many of them. Between parts of the groups
 * a thread's sums are where its outputs will be: it is given the same tiles again. */
static void multiply_rows(const Layer *layer, const uint8_t *rows, ptrdiff_t stride,
                          const float *spans, ptrdiff_t first_row, ptrdiff_t last_row,
                          int with_gelu, float *out) {
    const Weights *weights = &layer->weights;
    const int of_bytes = layer->scales != NULL;
    const ptrdiff_t num_rows = last_row - first_row, vectors = vectors_of(weights);
    const ptrdiff_t panels = parts_of(vectors, MOST_VECTORS), groups = groups_of(weights);
    const ptrdiff_t parts = parts_of(groups, MOST_GROUPS), of_panel = parts_of(num_rows, MOST_ROWS);
    for (ptrdiff_t part = 0; part < parts; part++) {
        const ptrdiff_t group = beginning(groups, part, parts);
        const ptrdiff_t groups_here = beginning(groups, part + 1, parts) - group;
        const uint8_t *packed = weights->packed + vectors * LANES * group * GROUP;
        _Pragma("omp for schedule(static) collapse(2) nowait")
        for (ptrdiff_t panel = 0; panel < panels; panel++)
            for (ptrdiff_t tile = 0; tile < of_panel; tile++) {
                ptrdiff_t row = first_row + beginning(num_rows, tile, of_panel);
                ptrdiff_t rows_here = first_row + beginning(num_rows, tile + 1, of_panel) - row;
                ptrdiff_t column = beginning(vectors, panel, panels) * LANES;
                ptrdiff_t width = beginning(vectors, panel + 1, panels) * LANES - column;
                ptrdiff_t columns = column + width < weights->out ? width : weights->out - column;
                const uint8_t *here = packed + column * groups_here * GROUP;
                /* each of the panel's tiles fetches its part of what comes behind it */
                const ptrdiff_t bytes = width * groups_here * GROUP;
                int32_t sums[MOST_ROWS * MOST_VECTORS * LANES];
                for (ptrdiff_t i = 0; i < rows_here; i++)
                    if (part == 0)
                        memcpy(sums + i * width, (const int32_t *)layer->starts + column,
                               width * sizeof(int32_t));
                    else
                        memcpy(sums + i * width, out + (row + i) * weights->out + column,
                               columns * sizeof(int32_t));
                const ptrdiff_t rows_index = rows_here - 1, vectors_index = width / LANES - 1;
                Tile *multiply = of_bytes ? tiles_of_bytes[rows_index][vectors_index]
                                          : tiles_of_floats[rows_index][vectors_index];
                multiply(rows + row * stride + group * GROUP, stride, here, groups_here,
                         here + bytes + beginning(bytes, tile, of_panel),
                         width * GROUP / of_panel, sums);
                for (ptrdiff_t i = 0; i < rows_here; i++, row++) {
                    float *outputs = out + row * weights->out + column;
                    if (part + 1 < parts)
                        memcpy(outputs, sums + i * width, columns * sizeof(int32_t));
                    else
                        finish_sums(sums + i * width, layer, spans ? spans[row] : 0, with_gelu,
                                    column, columns, outputs);
                }
            }
    }
}

OF_512_BITS static void finish_row(const After *after, ptrdiff_t row, ptrdiff_t width, float *out) {
    if (after->residual)
        for (ptrdiff_t i = 0; i < width; i++)
            out[i] = after->residual[row * width + i] + out[i];
    if (after->norm.weight) {
        float *normalised = after->normalised ? after->normalised + row * width : out;
        normalise(out, width, &after->norm, normalised);
        if (after->gelu)
            gelu(normalised, width);
    }
    if (after->levels)
        row_to_levels_any(out, width, after->levels, after->bytes + row * width, NULL,
                          after->spans + row);
}

OF_512_BITS static void row_to_bytes(const float *row, ptrdiff_t width, const Levels *levels,
                                     uint8_t *bytes, float *span) {
    row_to_levels_any(row, width, levels, bytes, NULL, span);
}

int multiplies_floats(void) { return vector_bits() == 512; }

int multiplies_bytes(void) {
    return multiplies_floats() && __builtin_cpu_supports("avx512vnni");
}

/* Returns 1 where memory is at its end. */
int linear(const Layer *layer, const Rows *given, const After *after, float *out) {
    const ptrdiff_t in = layer->weights.in, width = layer->weights.out;
    const ptrdiff_t num_rows = given->count;
    const int needs_levels = layer->scales && given->frames;
    const uint8_t *rows = given->bytes;
    const float *spans = given->spans;
    ptrdiff_t stride = in;
    uint8_t *made = NULL;
    float *made_spans = NULL;
    if (needs_levels) {
        /* a group of the last row may end behind it */
        made = malloc(num_rows * in + GROUP), made_spans = malloc(num_rows * sizeof(float));
        if (!made || !made_spans) {
            free(made), free(made_spans);
            return 1;
        }
        rows = made, spans = made_spans;
    } else if (given->frames)
        rows = (const uint8_t *)given->frames, stride = given->stride * sizeof(float);
    const ptrdiff_t parts = parts_of(groups_of(&layer->weights), MOST_GROUPS);
    const ptrdiff_t blocks = num_rows * in * layer->weights.size / parts / BLOCK + 1;
    const int finishes = after->residual || after->norm.weight || after->levels;
    _Pragma("omp parallel if (num_rows * in * width > SHARED_FROM)") {
        if (needs_levels)
            _Pragma("omp for schedule(static)")
            for (ptrdiff_t row = 0; row < num_rows; row++)
                row_to_bytes(given->frames + row * given->stride, in, &layer->levels,
                             made + row * in, made_spans + row);
        for (ptrdiff_t block = 0; block < blocks; block++)
            multiply_rows(layer, rows, stride, spans, beginning(num_rows, block, blocks),
                          beginning(num_rows, block + 1, blocks),
                          after->gelu && !after->norm.weight, out);
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
#else
int multiplies_floats(void) { return 0; }
int multiplies_bytes(void) { return 0; }
int linear(const Layer *layer, const Rows *given, const After *after, float *out) { return 1; }
#endif
