/* What several files need: code for the instructions of the CPU that it runs on, powers of 2 and GELU. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Instructions by lists that every gcc knows: levels of x86-64 by name it knows from 12 on. */
#if defined(__x86_64__)
#define WITH_512_BITS "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2"
#define OF_512_BITS __attribute__((target(WITH_512_BITS)))
#define OF_256_BITS __attribute__((target("avx2,fma,bmi2")))
#endif
#define LINE 64 /* bytes of a cache line: a vector that lies in two is loaded twice */
#define INLINE static inline __attribute__((always_inline))

/* Of the widest vectors that this CPU has. */
INLINE int vector_bits(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return 512;
        return 256;
    }
#endif
    return 128;
}

/* Of those that are used: as wide as this CPU has, but not wider than is asked for */
INLINE int vector_bits_within(int most_bits) {
    const int bits = vector_bits();
    return bits < most_bits ? bits : most_bits;
}

/* NAME, compiled of the inline function NAME_any for each width of vectors, of which it takes the
 * widest that there is. */
#if defined(__x86_64__)
#define ON_EVERY_CPU(RETURNS, NAME, PARAMETERS, ARGUMENTS)                                        \
    OF_512_BITS static RETURNS NAME##_512 PARAMETERS { return NAME##_any ARGUMENTS; }             \
    OF_256_BITS static RETURNS NAME##_256 PARAMETERS { return NAME##_any ARGUMENTS; }             \
    __attribute__((unused)) static RETURNS NAME PARAMETERS {                                      \
        const int bits = vector_bits();                                                           \
        if (bits == 512)                                                                          \
            return NAME##_512 ARGUMENTS;                                                          \
        return bits == 256 ? NAME##_256 ARGUMENTS : NAME##_any ARGUMENTS;                         \
    }
#else
#define ON_EVERY_CPU(RETURNS, NAME, PARAMETERS, ARGUMENTS)                                        \
    __attribute__((unused)) static RETURNS NAME PARAMETERS { return NAME##_any ARGUMENTS; }
#endif

INLINE ptrdiff_t rounded_up(ptrdiff_t number, ptrdiff_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
}

/* Memory that begins with a line, `size` bytes of whole lines; or NULL */
INLINE void *zeroed(size_t size) {
    void *memory = aligned_alloc(LINE, size);
    return memory ? memset(memory, 0, size) : NULL;
}

INLINE int32_t bits_of(float number) {
    int32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

INLINE int32_t bits_without_sign(float number) { return bits_of(number) & INT32_MAX; }

INLINE float with_bits(int32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* As comparing numbers does not tell, where the compiler may think that all are finite */
#define NO_NUMBER 0x7fc00000
INLINE int is_finite(float number) { return bits_without_sign(number) < 0x7f800000; }

#define LOG2_OF_E 1.44269504f

/* 2 to the power of what is not above 0, to 3e-7 of it */
INLINE float exp2_of_negative(float x) {
    x = x < -126.0f ? -126.0f : x;
    int32_t power = (int32_t)(x - 0.5f);
    float rest = x - power; /* -0.5 to 0.5 */
    float sum = 1.327647187e-3f;
    sum = sum * rest + 9.675541334e-3f;
    sum = sum * rest + 5.550713274e-2f;
    sum = sum * rest + 2.402211972e-1f;
    sum = sum * rest + 6.931469671e-1f;
    sum = sum * rest + 1.000000072f;
    return with_bits(bits_of(sum) + power * (1 << 23));
}

/* erf by Abramowitz and Stegun, 7.1.26, to 2e-7 */
INLINE float gelu_of(float x) {
    float z = (x < 0 ? -x : x) * 0.70710678f;
    float t = 1.0f / (1.0f + 0.3275911f * z);
    float sum = 1.061405429f;
    sum = sum * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    /* of the normal distribution */
    float tail = 0.5f * sum * t * exp2_of_negative(-z * z * LOG2_OF_E);
    return x < 0 ? x * tail : x - x * tail;
}

#endif
