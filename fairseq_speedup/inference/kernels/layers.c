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

/* What lies between, of all frames */
typedef struct {
    float *normalised, *projected, *attended, *hidden, *units, *spans;
    uint8_t *levels;
} Between;

static float *make_room(const TransformerLayer *layer, ptrdiff_t num_frames, Between *between) {
    const ptrdiff_t width = layer->out.weights.out, units = layer->first.weights.out;
    const ptrdiff_t of_frame[] = {width, layer->projection.weights.out, layer->out.weights.in,
                                  width, units, 1};
    float **parts[] = {&between->normalised, &between->projected, &between->attended,
                       &between->hidden, &between->units, &between->spans};
    ptrdiff_t total = 0;
    for (int i = 0; i < 6; i++)
        total += of_frame[i];
    /* of the last row of levels the group that is read may end behind it */
    float *memory = malloc((total * sizeof(float) + units) * num_frames + GROUP), *next = memory;
    for (int i = 0; i < 6; next += of_frame[i++] * num_frames)
        *parts[i] = next;
    between->levels = (uint8_t *)next;
    return memory;
}

/* Of utterances one behind another. Returns 1 where memory is at its end. */
static int attend_each(const TransformerLayer *layer, const ptrdiff_t *lengths,
                       ptrdiff_t num_utterances, ptrdiff_t num_threads, int most_bits,
                       const Between *between) {
    const ptrdiff_t width = layer->out.weights.in, stride = 3 * width;
    const ptrdiff_t dim = width / layer->heads;
    const float *queries = between->projected;
    float *out = between->attended;
    for (ptrdiff_t i = 0; i < num_utterances; i++) {
        if (attend(queries, queries + width, queries + 2 * width, stride, dim, layer->heads,
                   lengths[i], dim, NULL, out, width, num_threads, most_bits))
            return 1;
        queries += lengths[i] * stride, out += lengths[i] * width;
    }
    return 0;
}

/* Returns 1 where memory is at its end. */
int transformer_layer(const TransformerLayer *layer, const float *frames,
                      const ptrdiff_t *lengths, ptrdiff_t num_utterances, ptrdiff_t num_threads,
                      int most_bits, float *out) {
    const ptrdiff_t width = layer->out.weights.out;
    const int in_bytes = layer->second.scales != NULL;
    ptrdiff_t num_frames = 0;
    for (ptrdiff_t i = 0; i < num_utterances; i++)
        num_frames += lengths[i];
    Between between;
    float *memory = make_room(layer, num_frames, &between);
    if (!memory)
        return 1;
    Rows given = {.frames = frames, .stride = width, .count = num_frames};
    Rows hidden = {.frames = between.hidden, .stride = width, .count = num_frames};
    const Rows attended = {
        .frames = between.attended, .stride = layer->out.weights.in, .count = num_frames};
    Rows units = {
        .frames = between.units, .stride = layer->first.weights.out, .count = num_frames};
    After after_first = {.gelu = 1};
    if (in_bytes) {
        units.frames = NULL, units.bytes = between.levels, units.spans = between.spans;
        after_first.levels = &layer->second.levels;
        after_first.bytes = between.levels, after_first.spans = between.spans;
    }
    const After nothing = {0};
    After after_out = {.residual = frames, .norm = layer->attention_norm};
    After after_second = {.residual = between.hidden, .norm = layer->final_norm};
    if (layer->norm_first) {
        _Pragma("omp parallel for schedule(static)")
        for (ptrdiff_t row = 0; row < num_frames; row++)
            normalise(frames + row * width, width, &layer->attention_norm,
                      between.normalised + row * width);
        given.frames = hidden.frames = between.normalised;
        after_out.norm = layer->final_norm, after_out.normalised = between.normalised;
        after_second.norm = (Norm){0};
    }
    const int failed =
        linear(&layer->projection, &given, &nothing, between.projected) ||
        attend_each(layer, lengths, num_utterances, num_threads, most_bits, &between) ||
        linear(&layer->out, &attended, &after_out, between.hidden) ||
        linear(&layer->first, &hidden, &after_first, between.units) ||
        linear(&layer->second, &units, &after_second, out);
    free(memory);
    return failed;
}
