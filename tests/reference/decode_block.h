/* tests/reference/decode_block.h: the obvious decoder of ggml's blocks that judges numerics/decode_block*.c: walks a block's bytes and puts
 * each code where it belongs (the code under test asks, for an element, which bits are its own), in long double. Slow on purpose. */
#ifndef MICA_TESTS_REFERENCE_DECODE_BLOCK_H
#define MICA_TESTS_REFERENCE_DECODE_BLOCK_H

#include "reference/decode.h"

static long double reference_half(const uint8_t *bytes) {
    return reference_element(MICA_F16, bytes, 0);
}

/* Adds (byte >> shift & mask) * unit to element i, i + step, … for each part of a byte. */
static void reference_spread(const uint8_t *bytes, unsigned count, unsigned bits, unsigned step, int unit, int *q) {
    for (unsigned b = 0; b < count; b++)
        for (unsigned part = 0; part < 8 / bits; part++)
            q[b + part * step] += (int)(bytes[b] >> (part * bits) & ((1u << bits) - 1)) * unit;
}

static void reference_block(mica_dtype dtype, const uint8_t *b, long double *out) {
    static const int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static const int e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    int q[256] = {0}, scale[16] = {0}, minimum[16] = {0};
    long double d = 0, m = 0;
    switch (dtype) {
    case MICA_Q4_0: case MICA_IQ4_NL: case MICA_Q4_1:
        reference_spread(b + (dtype == MICA_Q4_1 ? 4 : 2), 16, 4, 16, 1, q);
        for (int i = 0; i < 32; i++)
            q[i] = dtype == MICA_Q4_0 ? q[i] - 8 : dtype == MICA_IQ4_NL ? iq4[q[i]] : q[i];
        d = reference_half(b);
        m = dtype == MICA_Q4_1 ? reference_half(b + 2) : 0;
        break;
    case MICA_Q5_0: case MICA_Q5_1: {
        const uint8_t *high = b + (dtype == MICA_Q5_1 ? 4 : 2);
        reference_spread(high + 4, 16, 4, 16, 1, q);
        for (int byte = 0; byte < 4; byte++)
            reference_spread(high + byte, 1, 1, 1, 16, q + 8 * byte);
        for (int i = 0; dtype == MICA_Q5_0 && i < 32; i++)
            q[i] -= 16;
        d = reference_half(b);
        m = dtype == MICA_Q5_1 ? reference_half(b + 2) : 0;
        break;
    }
    case MICA_Q8_0:
        d = reference_half(b);
        for (int i = 0; i < 32; i++)
            q[i] = b[2 + i] < 128 ? b[2 + i] : b[2 + i] - 256;
        break;
    case MICA_MXFP4:
        d = reference_element(MICA_F8_E8M0, b, 0) / 2;
        reference_spread(b + 1, 16, 4, 16, 1, q);
        for (int i = 0; i < 32; i++)
            q[i] = e2m1[q[i]];
        break;
    case MICA_Q2_K:
        d = reference_half(b + 80);
        m = reference_half(b + 82);
        for (int half = 0; half < 2; half++)
            reference_spread(b + 16 + 32 * half, 32, 2, 32, 1, q + 128 * half);
        for (int j = 0; j < 16; j++) {
            scale[j] = b[j] % 16;
            minimum[j] = b[j] / 16;
        }
        break;
    case MICA_Q3_K:
        d = reference_half(b + 108);
        for (int half = 0; half < 2; half++)
            reference_spread(b + 32 + 32 * half, 32, 2, 32, 1, q + 128 * half);
        reference_spread(b, 32, 1, 32, 4, q);
        for (int i = 0; i < 256; i++)
            q[i] -= 4;
        for (int j = 0; j < 8; j++) {
            scale[j] += b[96 + j] % 16;
            scale[j + 8] += b[96 + j] / 16;
        }
        reference_spread(b + 104, 4, 2, 4, 16, scale);
        for (int j = 0; j < 16; j++)
            scale[j] -= 32;
        break;
    case MICA_Q4_K: case MICA_Q5_K: {
        d = reference_half(b);
        m = reference_half(b + 2);
        const uint8_t *s = b + 4, *codes = b + (dtype == MICA_Q4_K ? 16 : 48);
        int scales[8], minima[8];
        for (int j = 0; j < 4; j++) {
            scales[j] = s[j] % 64;
            minima[j] = s[4 + j] % 64;
            scales[4 + j] = s[8 + j] % 16 + s[j] / 64 * 16;
            minima[4 + j] = s[8 + j] / 16 + s[4 + j] / 64 * 16;
        }
        for (int j = 0; j < 16; j++) {
            scale[j] = scales[j / 2];
            minimum[j] = minima[j / 2];
        }
        for (int chunk = 0; chunk < 4; chunk++)
            reference_spread(codes + 32 * chunk, 32, 4, 32, 1, q + 64 * chunk);
        if (dtype == MICA_Q5_K)
            reference_spread(b + 16, 32, 1, 32, 16, q);
        break;
    }
    case MICA_Q6_K:
        d = reference_half(b + 208);
        for (int half = 0; half < 2; half++) {
            reference_spread(b + 64 * half, 64, 4, 64, 1, q + 128 * half);
            reference_spread(b + 128 + 32 * half, 32, 2, 32, 16, q + 128 * half);
        }
        for (int i = 0; i < 256; i++)
            q[i] -= 32;
        for (int j = 0; j < 16; j++)
            scale[j] = b[192 + j] < 128 ? b[192 + j] : b[192 + j] - 256;
        break;
    case MICA_IQ4_XS:
        d = reference_half(b);
        for (int j = 0; j < 8; j++) {
            reference_spread(b + 8 + 16 * j, 16, 4, 16, 1, q + 32 * j);
            scale[2 * j] = b[4 + j / 2] / (j % 2 ? 16 : 1) % 16 + (b[2] + 256 * b[3]) / (1 << 2 * j) % 4 * 16 - 32;
            scale[2 * j + 1] = scale[2 * j];
        }
        for (int i = 0; i < 256; i++)
            q[i] = iq4[q[i]];
        break;
    default: break;
    }
    bool has_scales = mica_dtype_block_elements(dtype) == 256;
    for (uint32_t i = 0; i < mica_dtype_block_elements(dtype); i++) {
        long double product = d * (has_scales ? scale[i / 16] : 1) * q[i];
        out[i] = dtype == MICA_Q4_1 || dtype == MICA_Q5_1 ? product + m
                 : dtype == MICA_Q2_K || dtype == MICA_Q4_K || dtype == MICA_Q5_K ? product - m * minimum[i / 16] : product;
    }
}

#endif
