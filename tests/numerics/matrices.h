/* tests/numerics/matrices.h: random matrices with a wanted spectrum, stored in each encoding, for the tests of the SVD. */
#ifndef MICA_TESTS_MATRICES_H
#define MICA_TESTS_MATRICES_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numerics/matrix.h"

static uint64_t random_state = 1;

static inline uint64_t random_u64(void) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline double random_gauss(void) {
    double u = ((double)(random_u64() >> 11) + 0.5) * 0x1p-53, v = (double)(random_u64() >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

typedef enum spectrum_kind { FLAT, SPIKED, HARMONIC, RANK_6 } spectrum_kind;

/* Row-major floats: noise; noise and 8 spikes; rows falling like 1/i; rank 6 and 1e-3 noise. Free with free(). */
static inline float *random_values(spectrum_kind kind, size_t rows, size_t columns) {
    float *values = malloc(rows * columns * sizeof *values);
    for (size_t i = 0; i < rows * columns; i++)
        values[i] = (float)random_gauss() * (kind == RANK_6 ? 1e-3f : 1.0f);
    size_t spikes = kind == SPIKED ? 8 : kind == RANK_6 ? 6 : 0;
    for (size_t s = 0; s < spikes; s++) {
        float *left = malloc(rows * sizeof *left), size = kind == SPIKED ? 0.1f * (float)(s + 4) : 1.0f;
        for (size_t i = 0; i < rows; i++)
            left[i] = (float)random_gauss() * size;
        for (size_t j = 0; j < columns; j++) {
            float right = (float)random_gauss();
            for (size_t i = 0; i < rows; i++)
                values[i * columns + j] += left[i] * right;
        }
        free(left);
    }
    for (size_t i = 0; kind == HARMONIC && i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            values[i * columns + j] /= (float)((rows < columns ? i : j) + 1);
    return values;
}

/* A stored matrix that owns its buffers. */
typedef struct stored {
    mica_matrix matrix;
    void *codes, *scales;
} stored;

static inline void stored_free(stored *s) {
    free(s->codes);
    free(s->scales);
}

static inline uint8_t nearest_e4m3(float x) {
    float magnitude = fabsf(x) > 448 ? 448 : fabsf(x);
    int exponent;
    frexpf(magnitude, &exponent);
    exponent = exponent - 1 < -6 ? -6 : exponent - 1;
    int steps = (int)nearbyintf(ldexpf(magnitude, 3 - exponent));
    if (steps == 16)
        steps = 8, exponent++;
    return (uint8_t)((x < 0 ? 0x80 : 0) | (steps < 8 ? steps : (exponent + 7) << 3 | (steps - 8)));
}

static inline float largest_magnitude(const float *values, size_t columns, size_t row, size_t rows, size_t column, size_t width) {
    float largest = 0;
    for (size_t i = row; i < row + rows; i++)
        for (size_t j = column; j < column + width; j++)
            largest = fmaxf(largest, fabsf(values[i * columns + j]));
    return largest;
}

static inline stored store_fp8(const float *values, size_t rows, size_t columns, size_t block) {
    size_t grid_rows = (rows + block - 1) / block, grid_columns = (columns + block - 1) / block;
    uint8_t *codes = malloc(rows * columns);
    float *scales = malloc(grid_rows * grid_columns * sizeof *scales);
    for (size_t r = 0; r < rows; r += block)
        for (size_t c = 0; c < columns; c += block) {
            size_t height = rows - r < block ? rows - r : block, width = columns - c < block ? columns - c : block;
            float scale = largest_magnitude(values, columns, r, height, c, width) / 448;
            scale = scale > 0 ? scale : 1;
            scales[r / block * grid_columns + c / block] = scale;
            for (size_t i = r; i < r + height; i++)
                for (size_t j = c; j < c + width; j++)
                    codes[i * columns + j] = nearest_e4m3(values[i * columns + j] / scale);
        }
    return (stored){{MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, rows, columns, codes, MICA_F32, block, block, scales}, codes, scales};
}

/* columns a multiple of 32 */
static inline stored store_mxfp4(const float *values, size_t rows, size_t columns) {
    static const float levels[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    uint8_t *codes = calloc(rows, columns / 2), *scales = malloc(rows * columns / 32);
    for (size_t i = 0; i < rows; i++)
        for (size_t c = 0; c < columns; c += 32) {
            float largest = largest_magnitude(values, columns, i, 1, c, 32);
            int exponent = largest > 0 ? (int)ceilf(log2f(largest / 6)) : -127;
            exponent = exponent < -127 ? -127 : exponent;
            scales[(i * columns + c) / 32] = (uint8_t)(exponent + 127);
            for (size_t j = c; j < c + 32; j++) {
                float x = ldexpf(fabsf(values[i * columns + j]), -exponent);
                int best = 0;
                for (int level = 1; level < 8; level++)
                    best = fabsf(levels[level] - x) < fabsf(levels[best] - x) ? level : best;
                codes[(i * columns + j) / 2] |= (uint8_t)((best | (values[i * columns + j] < 0 ? 8 : 0)) << (j % 2 * 4));
            }
        }
    return (stored){{MICA_ENCODING_MXFP4, MICA_I8, rows, columns, codes, MICA_F8_E8M0, 1, 32, scales}, codes, scales};
}

/* columns a multiple of 32 */
static inline stored store_int4(const float *values, size_t rows, size_t columns) {
    uint8_t *codes = calloc(rows, columns / 2);
    uint16_t *scales = malloc(rows * columns / 32 * sizeof *scales);
    for (size_t i = 0; i < rows; i++)
        for (size_t c = 0; c < columns; c += 32) {
            float scale = largest_magnitude(values, columns, i, 1, c, 32) / 7;
            uint32_t bits;
            scale = scale > 0 ? scale : 1;
            memcpy(&bits, &scale, sizeof bits);
            bits &= 0xffff0000u;
            memcpy(&scale, &bits, sizeof bits);
            scales[(i * columns + c) / 32] = (uint16_t)(bits >> 16);
            for (size_t j = c; j < c + 32; j++) {
                int level = (int)nearbyintf(values[i * columns + j] / scale);
                level = level < -8 ? -8 : level > 7 ? 7 : level;
                codes[(i * columns + j) / 2] |= (uint8_t)((level + 8) << (j % 2 * 4));
            }
        }
    return (stored){{MICA_ENCODING_INT4_GROUP, MICA_I32, rows, columns, codes, MICA_BF16, 1, 32, scales}, codes, scales};
}

static inline stored store_bf16(const float *values, size_t rows, size_t columns) {
    uint16_t *codes = malloc(rows * columns * sizeof *codes);
    for (size_t i = 0; i < rows * columns; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        codes[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return (stored){{.encoding = MICA_ENCODING_PLAIN, .dtype = MICA_BF16, .rows = rows, .columns = columns, .codes = codes}, codes, NULL};
}

static inline stored store_f32(const float *values, size_t rows, size_t columns) {
    float *codes = malloc(rows * columns * sizeof *codes);
    memcpy(codes, values, rows * columns * sizeof *codes);
    return (stored){{.encoding = MICA_ENCODING_PLAIN, .dtype = MICA_F32, .rows = rows, .columns = columns, .codes = codes}, codes, NULL};
}

#endif
