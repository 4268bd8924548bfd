/* synthetic.c: values by a counter-based generator, spectra by rank-one parts, encoders that round to nearest. */
#include "synthetic.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

enum { TILE = SYNTHETIC_TILE, GROUP = SYNTHETIC_GROUP, CHUNK = 16 };

/* Spiked: what trained experts are said to show: var@64 of 0.08, s0/s1 between 1.1 and 1.2, 24 values above the noise.
 * Power: 1/k, from 128 times the noise down to it. */
static const synthetic_spectrum spectra[] = {
    {"flat", 0, 0, 0, 0, 0},
    {"spiked", 24, 1.35, 1.1, -0.12, 0},
    {"power", 128, 128, 128, -1, 1},
};

const synthetic_spectrum *synthetic_spectrum_find(const char *name) {
    for (size_t i = 0; i < sizeof spectra / sizeof *spectra; i++)
        if (strcmp(spectra[i].name, name) == 0) return &spectra[i];
    return NULL;
}

/* --- values --- */

static uint64_t mix(uint64_t value) { /* splitmix64's */
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

uint64_t synthetic_seed(uint64_t seed, const char *name) {
    seed = mix(seed + 1);
    for (; *name; name++) seed = mix(seed ^ (uint8_t)*name);
    return seed;
}

/* Mean 0, variance 1: the sum of four 16-bit uniforms, near enough to a Gaussian for any spectrum. */
static inline float noise(uint64_t seed, uint64_t index) {
    const uint64_t bits = mix(seed + index * 0x9e3779b97f4a7c15u);
    const int32_t sum = (int32_t)((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48)) - 2 * 65535;
    return (float)sum * 2.6428848e-5f; /* 1 / sqrt(4 (2^32 - 1) / 12) */
}

static double squares(uint64_t seed, uint64_t count) {
    double sum = 0;
    for (uint64_t i = 0; i < count; i++) sum += (double)noise(seed, i) * (double)noise(seed, i);
    return sum;
}

bool synthetic_source_init(synthetic_source *source, uint64_t seed, uint64_t rows, uint64_t columns, const synthetic_spectrum *spectrum) {
    const uint32_t parts = spectrum ? spectrum->parts : 0;
    *source = (synthetic_source){.seed = seed, .columns = columns, .deviation = 0.02f, .parts = parts};
    if (!parts) return true;
    source->left = mica_calloc(rows * parts, sizeof *source->left);
    source->right = mica_alloc_aligned((columns + TILE - 1) / TILE * parts * TILE * sizeof *source->right);
    if (!source->left || !source->right) {
        synthetic_source_release(source);
        return false;
    }
    const double edge = (double)source->deviation * (sqrt((double)rows) + sqrt((double)columns));
    for (uint32_t t = 0; t < parts; t++) {
        const uint64_t row_seed = mix(seed ^ (2 * t + 1)), column_seed = mix(seed ^ (2 * t + 2));
        const double strength = t == 0 ? spectrum->first : spectrum->scale * pow(t + spectrum->offset, spectrum->exponent);
        const float factor = (float)(edge * strength / sqrt(squares(row_seed, rows) * squares(column_seed, columns)));
        for (uint64_t row = 0; row < rows; row++) source->left[row * parts + t] = factor * noise(row_seed, row);
        for (uint64_t column = 0; column < columns; column++)
            source->right[(column / TILE * parts + t) * TILE + column % TILE] = noise(column_seed, column);
    }
    return true;
}

void synthetic_source_release(synthetic_source *source) {
    mica_free(source->left);
    mica_free_aligned(source->right);
    source->left = source->right = NULL;
}

void synthetic_source_row(const synthetic_source *source, uint64_t row, uint64_t tile, float values[TILE]) {
    const uint64_t first = row * source->columns + tile * TILE;
    for (uint32_t j = 0; j < TILE; j++) values[j] = source->deviation * noise(source->seed, first + j);
    if (!source->parts) return;
    const float *left = source->left + row * source->parts, *right = source->right + tile * source->parts * TILE;
    for (uint32_t j = 0; j < TILE; j += CHUNK) {
        float sums[CHUNK]; /* in registers over the parts */
        memcpy(sums, values + j, sizeof sums);
        for (uint32_t t = 0; t < source->parts; t++)
            for (uint32_t k = 0; k < CHUNK; k++) sums[k] += left[t] * right[t * TILE + j + k];
        memcpy(values + j, sums, sizeof sums);
    }
}

/* --- encodings --- */

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float largest(const float *values, uint32_t count) {
    float most = 0;
    for (uint32_t i = 0; i < count; i++) most = fabsf(values[i]) > most ? fabsf(values[i]) : most;
    return most;
}

/* The power of two that brings `most` to at most `limit`; its E8M0 byte is the exponent + 127. */
static int exponent_for(float most, float limit) { return most > 0 ? (int)ceilf(log2f(most / limit)) : 0; }

static uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* |value| at most 448. Below 2^-6 the steps are 2^-9, and a float whose last bit is worth that does the rounding. */
static inline uint8_t to_e4m3(float value) {
    const uint32_t bits = bits_of(value), size = bits & 0x7fffffff;
    const uint32_t normal = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120u << 3);
    const uint32_t small = bits_of(fabsf(value) + 16384.0f) - bits_of(16384.0f);
    return (uint8_t)((size < 121u << 23 ? small : normal) | (bits >> 24 & 0x80));
}

static uint8_t to_e2m1(float value) { /* 0 .5 1 1.5 2 3 4 6: the code is how many midpoints the value is beyond */
    const float size = fabsf(value);
    const int code = (size > 0.25f) + (size > 0.75f) + (size > 1.25f) + (size > 1.75f) + (size > 2.5f) + (size > 3.5f) + (size > 5.0f);
    return (uint8_t)(code | (value < 0 ? 8 : 0));
}

static uint8_t to_int4(float value) {
    const float rounded = rintf(value);
    return (uint8_t)((int)(rounded < -8 ? -8 : rounded > 7 ? 7 : rounded) + 8);
}

static void encode_fp8(synthetic_strip *strip, const synthetic_form *form, uint64_t tile, uint32_t rows, uint32_t columns) {
    float most = 0;
    for (uint32_t i = 0; i < rows; i++) most = fmaxf(most, largest(strip->tile[i], columns));
    float scale = most > 0 ? most / 448 : 1;
    if (form->scale_dtype == MICA_F8_E8M0) {
        const int exponent = exponent_for(most, 448);
        scale = ldexpf(1, exponent);
        strip->scales[tile] = (uint8_t)(exponent + 127);
    } else {
        memcpy(strip->scales + 4 * tile, &scale, 4);
    }
    const float inverse = 1 / scale;
    for (uint32_t i = 0; i < rows; i++) {
        uint8_t *codes = strip->codes + i * form->columns + tile * TILE;
        for (uint32_t j = 0; j < columns; j++) codes[j] = to_e4m3(strip->tile[i][j] * inverse);
    }
}

/* Two codes a byte, the even column in the low nibble. */
static void encode_mxfp4(const float values[GROUP], uint8_t codes[GROUP / 2], uint8_t *scale) {
    const int exponent = exponent_for(largest(values, GROUP), 6);
    const float inverse = ldexpf(1, -exponent);
    *scale = (uint8_t)(exponent + 127);
    for (uint32_t j = 0; j < GROUP; j += 2) codes[j / 2] = (uint8_t)(to_e2m1(values[j] * inverse) | to_e2m1(values[j + 1] * inverse) << 4);
}

static void encode_int4(const float values[GROUP], uint8_t codes[GROUP / 2], uint8_t scale[2]) {
    const float most = largest(values, GROUP);
    const uint16_t rounded = to_bf16(most > 0 ? most / 7 : 1);
    const float inverse = 1 / float_of((uint32_t)rounded << 16);
    memcpy(scale, &rounded, 2);
    for (uint32_t j = 0; j < GROUP; j += 2) codes[j / 2] = (uint8_t)(to_int4(values[j] * inverse) | to_int4(values[j + 1] * inverse) << 4);
}

static void encode_plain(synthetic_strip *strip, const synthetic_form *form, uint64_t tile, uint32_t rows, uint32_t columns) {
    for (uint32_t i = 0; i < rows; i++) {
        const uint64_t first = i * form->columns + tile * TILE;
        if (form->dtype == MICA_F32) memcpy(strip->codes + 4 * first, strip->tile[i], 4 * columns);
        for (uint32_t j = 0; form->dtype == MICA_BF16 && j < columns; j++) {
            const uint16_t code = to_bf16(strip->tile[i][j]);
            memcpy(strip->codes + 2 * (first + j), &code, 2);
        }
    }
}

void synthetic_encode(synthetic_strip *strip, const synthetic_form *form, uint64_t tile, uint32_t rows, uint32_t columns) {
    if (form->encoding == MICA_ENCODING_PLAIN) {
        encode_plain(strip, form, tile, rows, columns);
        return;
    }
    if (form->encoding == MICA_ENCODING_FP8_BLOCK) {
        encode_fp8(strip, form, tile, rows, columns);
        return;
    }
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t g = 0; g < columns / GROUP; g++) {
            const uint64_t group = i * (form->columns / GROUP) + tile * (TILE / GROUP) + g;
            uint8_t *codes = strip->codes + group * (GROUP / 2);
            if (form->encoding == MICA_ENCODING_MXFP4) encode_mxfp4(strip->tile[i] + g * GROUP, codes, strip->scales + group);
            else encode_int4(strip->tile[i] + g * GROUP, codes, strip->scales + 2 * group);
        }
}
