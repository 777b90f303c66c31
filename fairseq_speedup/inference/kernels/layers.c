/* A transformer layer of wav2vec 2.0's, of its linear layers and attention: one call in place of five.
 * layers.py calls it. */
#include "attention.h"
#include "linears.h"

typedef struct {
    Layer projection, out; /* of attention: queries, keys and values, and what is made of its heads */
    Layer first, second;   /* of the feed-forward layer, with a GELU between */
    Norm attention_norm, final_norm;
    ptrdiff_t heads;
    int32_t norm_first; /* norms come before attention and feed-forward layer, not after them */
} TransformerLayer;

#define BLOCK_OF_UNITS (1 << 22) /* bytes of units that stay in the cores' second caches */

/* What lies between: of all frames what attention reads, whose queries give their place to what it makes
 * of them; the rest of a block of them. */
typedef struct {
    float *projected, *normalised, *hidden, *units, *spans;
    uint8_t *levels;
} Between;

static float *make_room(const TransformerLayer *layer, ptrdiff_t num_frames, ptrdiff_t most_rows,
                        Between *between) {
    const ptrdiff_t width = layer->out.weights.out, units = layer->first.weights.out;
    ptrdiff_t sizes[] = {layer->projection.weights.out * num_frames, width * most_rows,
                         width * most_rows, units * most_rows, most_rows};
    float **parts[] = {&between->projected, &between->normalised, &between->hidden,
                       &between->units, &between->spans};
    ptrdiff_t total = 0;
    for (int i = 0; i < 5; i++)
        total += sizes[i] = rounded_up(sizes[i], LINE / sizeof(float));
    const ptrdiff_t of_levels = rounded_up(units * most_rows + READ_BEHIND, LINE);
    float *memory = aligned_alloc(LINE, total * sizeof(float) + of_levels), *next = memory;
    for (int i = 0; i < 5; next += sizes[i++])
        *parts[i] = next;
    between->levels = (uint8_t *)next;
    return memory;
}

INLINE Rows rows_of(const float *frames, ptrdiff_t stride, ptrdiff_t count) {
    return (Rows){.frames = frames, .stride = stride, .count = count};
}

/* Of a block of frames, each after a norm where norms come first */
static int project(const TransformerLayer *layer, const float *frames, ptrdiff_t count,
                   const Between *between, float *out) {
    const ptrdiff_t width = layer->projection.weights.in;
    const After nothing = {0};
    if (layer->norm_first) {
        _Pragma("omp parallel for schedule(static)")
        for (ptrdiff_t row = 0; row < count; row++)
            normalise(frames + row * width, width, &layer->attention_norm,
                      between->normalised + row * width);
        frames = between->normalised;
    }
    const Rows given = rows_of(frames, width, count);
    return linear(&layer->projection, &given, &nothing, out);
}

/* Of utterances one behind another */
static int attend_each(const TransformerLayer *layer, const ptrdiff_t *lengths,
                       ptrdiff_t num_utterances, ptrdiff_t num_threads, int most_bits,
                       float *projected) {
    const ptrdiff_t width = layer->out.weights.in, stride = 3 * width;
    const ptrdiff_t dim = width / layer->heads;
    for (ptrdiff_t i = 0; i < num_utterances; i++) {
        if (attend(projected, projected + width, projected + 2 * width, stride, dim, layer->heads,
                   lengths[i], dim, NULL, projected, stride, num_threads, most_bits,
                   layer->projection.scales != NULL))
            return 1;
        projected += lengths[i] * stride;
    }
    return 0;
}

/* What follows attention, of a block of frames */
static int feed_forward(const TransformerLayer *layer, const float *frames, const float *attended,
                        ptrdiff_t count, const Between *between, float *out) {
    const ptrdiff_t width = layer->out.weights.out, num_units = layer->first.weights.out;
    const Rows heads = rows_of(attended, 3 * layer->out.weights.in, count);
    Rows hidden = rows_of(between->hidden, width, count);
    Rows units = rows_of(between->units, num_units, count);
    After after_out = {.residual = frames, .norm = layer->attention_norm};
    After after_first = {.gelu = 1};
    After after_second = {.residual = between->hidden, .norm = layer->final_norm};
    if (layer->second.scales) {
        units.frames = NULL, units.bytes = between->levels, units.spans = between->spans;
        after_first.levels = &layer->second.levels;
        after_first.bytes = between->levels, after_first.spans = between->spans;
    }
    if (layer->norm_first) {
        after_out.norm = layer->final_norm, after_out.normalised = between->normalised;
        hidden.frames = between->normalised;
        after_second.norm = (Norm){0};
    }
    return linear(&layer->out, &heads, &after_out, between->hidden) ||
           linear(&layer->first, &hidden, &after_first, between->units) ||
           linear(&layer->second, &units, &after_second, out);
}

/* Returns 1 where memory is at its end. */
int transformer_layer(const TransformerLayer *layer, const float *frames,
                      const ptrdiff_t *lengths, ptrdiff_t num_utterances, ptrdiff_t num_threads,
                      int most_bits, float *out) {
    const ptrdiff_t width = layer->out.weights.out, projected = layer->projection.weights.out;
    ptrdiff_t num_frames = 0;
    for (ptrdiff_t i = 0; i < num_utterances; i++)
        num_frames += lengths[i];
    const ptrdiff_t bytes = num_frames * layer->first.weights.out * sizeof(float);
    const ptrdiff_t blocks = bytes / BLOCK_OF_UNITS + 1;
    Between between;
    float *memory = make_room(layer, num_frames, parts_of(num_frames, blocks), &between);
    if (!memory)
        return 1;
    int failed = 0;
    for (ptrdiff_t block = 0; block < blocks && !failed; block++) {
        const ptrdiff_t row = beginning(num_frames, block, blocks);
        failed = project(layer, frames + row * width, beginning(num_frames, block + 1, blocks) - row,
                         &between, between.projected + row * projected);
    }
    failed = failed || attend_each(layer, lengths, num_utterances, num_threads, most_bits,
                                   between.projected);
    for (ptrdiff_t block = 0; block < blocks && !failed; block++) {
        const ptrdiff_t row = beginning(num_frames, block, blocks);
        failed = feed_forward(layer, frames + row * width, between.projected + row * projected,
                              beginning(num_frames, block + 1, blocks) - row, &between,
                              out + row * width);
    }
    free(memory);
    return failed;
}
