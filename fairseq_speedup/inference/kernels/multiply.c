/* Sums of products in vectors of 128 to 512 bits, in fp32, of bytes and of numbers of 16 bits. */
#include "multiply.h"

typedef int32_t Vector_128 __attribute__((vector_size(16)));
typedef int32_t Anywhere_128 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Floats_128 __attribute__((vector_size(16)));

INLINE Vector_128 all_128(int32_t number) { return (Vector_128){number, number, number, number}; }

/* To sums, products of the groups that are taken together: of a row's, each everywhere, and columns' */
INLINE Vector_128 add_floats_128(Vector_128 sums, const Vector_128 *row, const Vector_128 *column) {
    return (Vector_128)((Floats_128)sums + (Floats_128)*row * (Floats_128)*column);
}

#if defined(__x86_64__)
#include <immintrin.h>
typedef __m512i Vector_512;
typedef __m512i_u Anywhere_512;
typedef __m256i Vector_256;
typedef __m256i_u Anywhere_256;
#define all_512 _mm512_set1_epi32
#define all_256 _mm256_set1_epi32
#define OF_VNNI __attribute__((target(WITH_512_BITS ",avx512vnni")))

/* gcc copies the sums before each of its own _mm512_dpbusd_epi32, and spills them */
INLINE OF_VNNI __m512i add_fours(__m512i sums, const __m512i *row, const __m512i *column) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(*row), "v"(*column));
    return sums;
}

INLINE OF_VNNI __m512i add_words_512(__m512i sums, const __m512i *row, const __m512i *column) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(*row), "v"(*column));
    return sums;
}

INLINE OF_256_BITS __m256i add_words_256(__m256i sums, const __m256i *row, const __m256i *column) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(*row, *column));
}

/* Sums of four products, two of either group, are in 16 bits: who calls sees to it that they fit. */
INLINE OF_512_BITS __m512i add_narrow_512(__m512i sums, const __m512i *row, const __m512i *column) {
    const __m512i fours = _mm512_add_epi16(_mm512_maddubs_epi16(row[0], column[0]),
                                           _mm512_maddubs_epi16(row[1], column[1]));
    return _mm512_add_epi32(sums, _mm512_madd_epi16(fours, _mm512_set1_epi16(1)));
}

INLINE OF_256_BITS __m256i add_narrow_256(__m256i sums, const __m256i *row, const __m256i *column) {
    const __m256i fours = _mm256_add_epi16(_mm256_maddubs_epi16(row[0], column[0]),
                                           _mm256_maddubs_epi16(row[1], column[1]));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(fours, _mm256_set1_epi16(1)));
}

INLINE OF_512_BITS __m512i add_floats_512(__m512i sums, const __m512i *row, const __m512i *column) {
    return _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(*row),
                                               _mm512_castsi512_ps(*column),
                                               _mm512_castsi512_ps(sums)));
}

INLINE OF_256_BITS __m256i add_floats_256(__m256i sums, const __m256i *row, const __m256i *column) {
    return _mm256_castps_si256(_mm256_fmadd_ps(_mm256_castsi256_ps(*row),
                                               _mm256_castsi256_ps(*column),
                                               _mm256_castsi256_ps(sums)));
}
#endif

/* A tile of vectors of BITS bits, rows and vectors as many as are known when it is compiled */
#define EACH_VECTOR _Pragma("GCC unroll 4") for (int vector = 0; vector < num_vectors; vector++)
#define EACH_ROW _Pragma("GCC unroll 6") for (int row = 0; row < num_rows; row++)
#define EACH_GROUP _Pragma("GCC unroll 2") for (int each = 0; each < together; each++)
#define DEFINE_MULTIPLY(ATTRIBUTES, NAME, ADD, BITS, TOGETHER)                                 \
    INLINE ATTRIBUTES void multiply_##NAME(const int num_rows, const int num_vectors,          \
                                           TILE_PARAMETERS) {                                  \
        typedef Vector_##BITS Vector;                                                          \
        typedef Anywhere_##BITS Anywhere;                                                      \
        const int lanes = BITS / 32, together = TOGETHER;                                      \
        Vector kept[MOST_ROWS][MOST_VECTORS], weights[MOST_VECTORS][MOST_TOGETHER];            \
        EACH_ROW EACH_VECTOR kept[row][vector] =                                               \
            ((const Anywhere *)((const char *)from.first + row * from.stride))[vector];        \
        _Pragma("GCC unroll 4") for (ptrdiff_t group = 0; group < groups; group += together) { \
            EACH_GROUP {                                                                       \
                EACH_VECTOR weights[vector][each] = ((const Anywhere *)panel)[vector];         \
                panel += num_vectors * lanes * GROUP;                                          \
                __builtin_prefetch(ahead, 0, 2);                                               \
                if (num_vectors * lanes * GROUP > LINE)                                        \
                    __builtin_prefetch(ahead + stride_ahead / 2, 0, 2);                        \
                ahead += stride_ahead;                                                         \
            }                                                                                  \
            EACH_ROW {                                                                         \
                Vector of_row[MOST_TOGETHER];                                                  \
                EACH_GROUP {                                                                   \
                    int32_t inputs;                                                            \
                    memcpy(&inputs, rows + row * stride + (group + each) * GROUP, GROUP);      \
                    of_row[each] = all_##BITS(inputs);                                         \
                }                                                                              \
                EACH_VECTOR kept[row][vector] = ADD(kept[row][vector], of_row, weights[vector]); \
            }                                                                                  \
        }                                                                                      \
        EACH_ROW EACH_VECTOR                                                                   \
        ((Anywhere *)((char *)to.first + row * to.stride))[vector] = kept[row][vector];        \
    }
#define DEFINE_TILE(NAME, ROWS, VECTORS)                                                      \
    static void tile_of_##NAME##_##ROWS##_##VECTORS(TILE_PARAMETERS) {                        \
        multiply_##NAME(ROWS, VECTORS, rows, stride, panel, groups, ahead, stride_ahead, from, \
                        to);                                                                  \
    }
#define DEFINE_TWO(ATTRIBUTES, NAME, ROWS) \
    ATTRIBUTES DEFINE_TILE(NAME, ROWS, 1) ATTRIBUTES DEFINE_TILE(NAME, ROWS, 2)
#define DEFINE_FOUR(ATTRIBUTES, NAME, ROWS) \
    DEFINE_TWO(ATTRIBUTES, NAME, ROWS)      \
    ATTRIBUTES DEFINE_TILE(NAME, ROWS, 3) ATTRIBUTES DEFINE_TILE(NAME, ROWS, 4)
#define TWO(NAME, ROWS) tile_of_##NAME##_##ROWS##_1, tile_of_##NAME##_##ROWS##_2
#define FOUR(NAME, ROWS) TWO(NAME, ROWS), tile_of_##NAME##_##ROWS##_3, tile_of_##NAME##_##ROWS##_4
/* VECTORS is TWO or FOUR, the most that a tile has */
#define DEFINE_MULTIPLIER(ATTRIBUTES, NAME, ADD, BITS, SIZE, TOGETHER, VECTORS, MOST)         \
    DEFINE_MULTIPLY(ATTRIBUTES, NAME, ADD, BITS, TOGETHER)                                    \
    DEFINE_##VECTORS(ATTRIBUTES, NAME, 1) DEFINE_##VECTORS(ATTRIBUTES, NAME, 2)               \
    DEFINE_##VECTORS(ATTRIBUTES, NAME, 3) DEFINE_##VECTORS(ATTRIBUTES, NAME, 4)               \
    DEFINE_##VECTORS(ATTRIBUTES, NAME, 5) DEFINE_##VECTORS(ATTRIBUTES, NAME, 6)               \
    static const Multiplier NAME = {SIZE, BITS / 32, TOGETHER, MOST,                          \
                                    {{VECTORS(NAME, 1)}, {VECTORS(NAME, 2)}, {VECTORS(NAME, 3)}, \
                                     {VECTORS(NAME, 4)}, {VECTORS(NAME, 5)}, {VECTORS(NAME, 6)}}};

DEFINE_MULTIPLIER(, floats_128, add_floats_128, 128, 4, 1, TWO, 2)
#if defined(__x86_64__)
DEFINE_MULTIPLIER(OF_512_BITS, floats_512, add_floats_512, 512, 4, 1, FOUR, 4)
DEFINE_MULTIPLIER(OF_256_BITS, floats_256, add_floats_256, 256, 4, 1, TWO, 2)
DEFINE_MULTIPLIER(OF_VNNI, fours_512, add_fours, 512, 1, 1, FOUR, 4)
DEFINE_MULTIPLIER(OF_512_BITS, narrow_512, add_narrow_512, 512, 1, 2, FOUR, 4)
DEFINE_MULTIPLIER(OF_256_BITS, narrow_256, add_narrow_256, 256, 1, 2, TWO, 2)
DEFINE_MULTIPLIER(OF_VNNI, words_512, add_words_512, 512, 2, 1, FOUR, 4)
DEFINE_MULTIPLIER(OF_256_BITS, words_256, add_words_256, 256, 2, 1, TWO, 2)
#endif

const Multiplier *floats_multiplier(int most_bits) {
    const int bits = vector_bits_within(most_bits);
#if defined(__x86_64__)
    if (bits >= 256)
        return bits >= 512 ? &floats_512 : &floats_256;
#endif
    (void)bits;
    return NULL;
}

const Multiplier *floats_multiplier_of_any(int most_bits) {
    const Multiplier *wide = floats_multiplier(most_bits);
    return wide ? wide : &floats_128;
}

const Multiplier *bytes_multiplier(int most_bits, int narrow) {
    const int bits = vector_bits_within(most_bits);
#if defined(__x86_64__)
    if (!narrow)
        return bits >= 512 && __builtin_cpu_supports("avx512vnni") ? &fours_512 : NULL;
    if (bits >= 256)
        return bits >= 512 ? &narrow_512 : &narrow_256;
#endif
    (void)bits, (void)narrow;
    return NULL;
}

const Multiplier *words_multiplier(int most_bits) {
    const int bits = vector_bits_within(most_bits);
#if defined(__x86_64__)
    if (bits >= 512 && __builtin_cpu_supports("avx512vnni"))
        return &words_512;
    if (bits == 256) /* floats of 512 bits are as fast */
        return &words_256;
#endif
    (void)bits;
    return NULL;
}
