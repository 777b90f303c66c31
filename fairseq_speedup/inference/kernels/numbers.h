/* What several files need: code for the instructions of the CPU that it runs on, exp and
 * GELU. */
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

/* exp of what is not above 0, to 4e-6 of it (Cephes' expf; 3e-7 with FMA) */
INLINE float exp_of_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    int32_t power = (int32_t)(x * 1.44269504f - 0.5f);
    float rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    union {
        int32_t bits;
        float value;
    } scale = {(power + 127) << 23};
    return sum * scale.value;
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
    float tail = 0.5f * sum * t * exp_of_negative(-z * z); /* of the normal distribution */
    return x < 0 ? x * tail : x - x * tail;
}

#endif
