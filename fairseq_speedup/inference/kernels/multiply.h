/* Products of rows with what lies in panels of columns: the tile of sums that stays in registers, by
 * the instructions that a CPU has. */
#ifndef MULTIPLY_H
#define MULTIPLY_H

#include "numbers.h"

#define GROUP 4 /* bytes that are multiplied at once: a float, two numbers of 16 bits, or four bytes */
#define MOST_TOGETHER 2
#define READ_BEHIND (GROUP * MOST_TOGETHER) /* bytes behind the last row that may be read */
#define MOST_ROWS 6 /* of a tile of any multiplier */
#define MOST_VECTORS 4
#define MOST_LANES 16

/* Sums in vectors, be they of floats or of int32; rows are `stride` apart, or all the same one */
typedef struct {
    void *first;
    ptrdiff_t stride;
} Sums;

/* To the sums `from`, what groups of some rows and a panel of columns add. `ahead` is fetched,
 * `stride_ahead` bytes of it for each group. */
#define TILE_PARAMETERS                                                            \
    const uint8_t *rows, ptrdiff_t stride, const uint8_t *panel, ptrdiff_t groups, \
        const uint8_t *ahead, ptrdiff_t stride_ahead, Sums from, Sums to
typedef void Tile(TILE_PARAMETERS);

/* And the tiles whose sums stay in registers */
typedef struct {
    ptrdiff_t size;         /* of a number in a panel: of an int8, an int16 or a float */
    ptrdiff_t lanes;        /* sums in a vector */
    ptrdiff_t together;     /* groups that are taken at once: there is a multiple of them */
    ptrdiff_t most_vectors; /* of a tile, side by side */
    Tile *tiles[MOST_ROWS][MOST_VECTORS];
} Multiplier;

INLINE ptrdiff_t parts_of(ptrdiff_t whole, ptrdiff_t most) { return rounded_up(whole, most) / most; }

/* Where the `part`-th of `parts` parts of `whole` begins, which are alike but for one */
INLINE ptrdiff_t beginning(ptrdiff_t whole, ptrdiff_t part, ptrdiff_t parts) {
    return whole * part / parts;
}

/* The multipliers within a limit on the width of vectors; NULL where this CPU has none. */
const Multiplier *floats_multiplier(int most_bits);
/* Of bytes of rows, from 0, and int8 in panels; where it is narrow, sums of four products have to fit
 * into 16 bits: of inputs 0, 1, 4 and 5 of every eight, and of 2, 3, 6 and 7 */
const Multiplier *bytes_multiplier(int most_bits, int narrow);
/* Of int16 in both; sums are in 32 bits */
const Multiplier *words_multiplier(int most_bits);
/* Of floats too, and never NULL */
const Multiplier *floats_multiplier_of_any(int most_bits);

#endif
