/* What several files need: code for the instructions of the CPU that it runs on, and exp. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_CPU
#endif
#define LINE 64 /* bytes of a cache line: a vector that lies in two is loaded twice */
#define INLINE static inline __attribute__((always_inline))

INLINE ptrdiff_t rounded_up(ptrdiff_t number, ptrdiff_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
}

/* Memory that begins with a line, `size` bytes of whole lines; or NULL */
INLINE void *zeroed(size_t size) {
    void *memory = aligned_alloc(LINE, size);
    return memory ? memset(memory, 0, size) : NULL;
}

/* exp of what is not above 0, to 2e-7 of it (Cephes' expf) */
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

#endif
