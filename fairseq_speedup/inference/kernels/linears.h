/* A linear layer and what comes before and after it: linears.c. */
#ifndef LINEARS_H
#define LINEARS_H

#include "multiply.h"
#include "rows.h"

/* Weights lie as they are taken: of some groups of inputs after others panels of as many vectors of
 * outputs as a tile has, in each group after group those of an output side by side. */
typedef struct {
    const uint8_t *packed;
    ptrdiff_t in, out;
    const Multiplier *by;
} Weights;

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

/* Rows of frames; or of bytes, with their spans, where there are no frames. They are `stride` floats
 * or bytes apart. */
typedef struct {
    const float *frames;
    ptrdiff_t stride, count;
    const uint8_t *bytes;
    const float *spans;
} Rows;

/* What is made of outputs, in this order, of what there is: `residual` is added; what is normalised
 * of that goes to `normalised`, or else in its place; the GELU, which without a norm is the first; of
 * what was not normalised, levels. */
typedef struct {
    const float *residual;
    Norm norm;
    float *normalised;
    const Levels *levels;
    uint8_t *bytes;
    float *spans;
    int32_t gelu;
} After;

/* Returns 1 where memory is at its end. */
int linear(const Layer *layer, const Rows *given, const After *after, float *out);

#endif
