/* numerics/decode_block_generic.h: ggml's blocks to float32, over a vector of LANES floats; included once per instruction set by
 * decode_block_avx*.c, which bring: TARGET, LANES, ints, floats, and
 *     ints   widen(bytes), widen_signed(bytes), ints_of(int), shift_right(ints, int), each_shift_right(ints, ints), both(ints, ints), either(ints, ints),
 *            shift_left(ints, int), minus(ints, ints), counting(first): first, first + 1, …
 *     floats to_floats(ints), floats_of(float), times(floats, floats), less(floats, floats), plus(floats, floats), look_up(table, ints)
 *     store(out, floats): with one pattern for every NaN; half(bytes): a float.
 * Same bits as decode_block.c: integer times scale is exact in float32, and taking off the minimum rounds once. */

/* Elements i … i + LANES - 1 of 32 whose low nibbles are the first 16. */
TARGET static inline ints nibbles_of_32(const uint8_t *codes, unsigned i) {
    return i < 16 ? both(widen(codes + i), ints_of(15)) : shift_right(widen(codes + i - 16), 4);
}

TARGET static inline ints fifth_bits(const uint8_t *bits, unsigned i) {
    return shift_left(both(each_shift_right(ints_of(mica_load_i32(bits, 0)), counting((int)i)), ints_of(1)), 4);
}

#define DEFINE_BLOCKS(name, elements, bytes)                                                                          \
    TARGET static inline void name##_block(const uint8_t *block, float factor, float *out);                           \
    TARGET static void name(const uint8_t *blocks, uint64_t count, float factor, float *out) {                        \
        for (uint64_t b = 0; b < count; b++)                                                                          \
            name##_block(blocks + b * bytes, factor, out + b * elements);                                             \
    }                                                                                                                 \
    TARGET static inline void name##_block(const uint8_t *block, float factor, float *out)

DEFINE_BLOCKS(q4_0, 32, 18) {
    const float d = half(block) * factor;
    for (unsigned i = 0; i < 32; i += LANES)
        store(out + i, times(to_floats(minus(nibbles_of_32(block + 2, i), ints_of(8))), floats_of(d)));
}

DEFINE_BLOCKS(q4_1, 32, 20) {
    const float d = half(block) * factor, m = half(block + 2) * factor;
    for (unsigned i = 0; i < 32; i += LANES)
        store(out + i, plus(times(to_floats(nibbles_of_32(block + 4, i)), floats_of(d)), floats_of(m)));
}

DEFINE_BLOCKS(q5_0, 32, 22) {
    const float d = half(block) * factor;
    for (unsigned i = 0; i < 32; i += LANES) {
        const ints q = either(nibbles_of_32(block + 6, i), fifth_bits(block + 2, i));
        store(out + i, times(to_floats(minus(q, ints_of(16))), floats_of(d)));
    }
}

DEFINE_BLOCKS(q5_1, 32, 24) {
    const float d = half(block) * factor, m = half(block + 2) * factor;
    for (unsigned i = 0; i < 32; i += LANES) {
        const ints q = either(nibbles_of_32(block + 8, i), fifth_bits(block + 4, i));
        store(out + i, plus(times(to_floats(q), floats_of(d)), floats_of(m)));
    }
}

DEFINE_BLOCKS(q8_0, 32, 34) {
    const float d = half(block) * factor;
    for (unsigned i = 0; i < 32; i += LANES)
        store(out + i, times(to_floats(widen_signed(block + 2 + i)), floats_of(d)));
}

DEFINE_BLOCKS(iq4_nl, 32, 18) {
    const float d = half(block) * factor;
    for (unsigned i = 0; i < 32; i += LANES)
        store(out + i, times(look_up(iq4_table, nibbles_of_32(block + 2, i)), floats_of(d)));
}

DEFINE_BLOCKS(mxfp4, 32, 17) {
    const float d = (float)mica_e8m0_value(block[0]) * factor;
    for (unsigned i = 0; i < 32; i += LANES)
        store(out + i, times(look_up(e2m1_table, nibbles_of_32(block + 1, i)), floats_of(d)));
}

/* Elements of 256 are walked in runs of LANES within groups of 16, which share a scale. */
DEFINE_BLOCKS(q2_k, 256, 84) {
    const float d = half(block + 80) * factor, m = half(block + 82) * factor;
    for (unsigned e = 0; e < 256; e += LANES) {
        const uint8_t scale = block[e / 16];
        const ints q = both(shift_right(widen(block + 16 + e / 128 * 32 + e % 32), (int)(e / 32 % 4 * 2)), ints_of(3));
        store(out + e, less(times(to_floats(q), floats_of(d * (float)(scale & 15))), floats_of(m * (float)(scale >> 4))));
    }
}

DEFINE_BLOCKS(q3_k, 256, 110) {
    const float d = half(block + 108) * factor;
    const uint8_t *scales = block + 96;
    for (unsigned e = 0; e < 256; e += LANES) {
        const unsigned j = e / 16, scale = (scales[j % 8] >> (j / 8 * 4) & 15u) | (scales[8 + j % 4] >> (j / 4 * 2) & 3u) << 4;
        const ints low = both(shift_right(widen(block + 32 + e / 128 * 32 + e % 32), (int)(e / 32 % 4 * 2)), ints_of(3));
        const ints high = shift_left(both(shift_right(widen(block + e % 32), (int)(e / 32)), ints_of(1)), 2);
        store(out + e, times(to_floats(minus(either(low, high), ints_of(4))), floats_of(d * (float)((int)scale - 32))));
    }
}

/* Eight scales and eight minima of six bits in twelve bytes. */
static inline void scale_and_minimum(const uint8_t *packed, unsigned j, float *scale, float *minimum) {
    *scale = (float)(j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4);
    *minimum = (float)(j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4);
}

DEFINE_BLOCKS(q4_k, 256, 144) {
    const float d = half(block) * factor, m = half(block + 2) * factor;
    for (unsigned j = 0; j < 8; j++) {
        float scale, minimum;
        scale_and_minimum(block + 4, j, &scale, &minimum);
        const floats product = floats_of(d * scale), offset = floats_of(m * minimum);
        for (unsigned i = 0; i < 32; i += LANES) {
            const ints q = both(shift_right(widen(block + 16 + j / 2 * 32 + i), (int)(j % 2 * 4)), ints_of(15));
            store(out + 32 * j + i, less(times(to_floats(q), product), offset));
        }
    }
}

DEFINE_BLOCKS(q5_k, 256, 176) {
    const float d = half(block) * factor, m = half(block + 2) * factor;
    for (unsigned j = 0; j < 8; j++) {
        float scale, minimum;
        scale_and_minimum(block + 4, j, &scale, &minimum);
        const floats product = floats_of(d * scale), offset = floats_of(m * minimum);
        for (unsigned i = 0; i < 32; i += LANES) {
            const ints low = both(shift_right(widen(block + 48 + j / 2 * 32 + i), (int)(j % 2 * 4)), ints_of(15));
            const ints high = shift_left(both(shift_right(widen(block + 16 + i), (int)j), ints_of(1)), 4);
            store(out + 32 * j + i, less(times(to_floats(either(low, high)), product), offset));
        }
    }
}

DEFINE_BLOCKS(q6_k, 256, 210) {
    const float d = half(block + 208) * factor;
    for (unsigned e = 0; e < 256; e += LANES) {
        const ints low = both(shift_right(widen(block + e / 128 * 64 + e % 64), (int)(e / 64 % 2 * 4)), ints_of(15));
        const ints high = shift_left(both(shift_right(widen(block + 128 + e / 128 * 32 + e % 32), (int)(e / 32 % 4 * 2)), ints_of(3)), 4);
        store(out + e, times(to_floats(minus(either(low, high), ints_of(32))), floats_of(d * (float)(int8_t)block[192 + e / 16])));
    }
}

DEFINE_BLOCKS(iq4_xs, 256, 136) {
    const float d = half(block) * factor;
    const unsigned high = mica_load_u16(block, 1);
    for (unsigned j = 0; j < 8; j++) {
        const unsigned scale = (block[4 + j / 2] >> (j % 2 * 4) & 15u) | (high >> 2 * j & 3u) << 4;
        const floats product = floats_of(d * (float)((int)scale - 32));
        for (unsigned i = 0; i < 32; i += LANES)
            store(out + 32 * j + i, times(look_up(iq4_table, nibbles_of_32(block + 8 + 16 * j, i)), product));
    }
}

#define BLOCK_TABLE                                                                                                            \
    {[MICA_Q4_0] = q4_0, [MICA_Q4_1] = q4_1, [MICA_Q5_0] = q5_0, [MICA_Q5_1] = q5_1, [MICA_Q8_0] = q8_0, [MICA_Q2_K] = q2_k,   \
     [MICA_Q3_K] = q3_k, [MICA_Q4_K] = q4_k, [MICA_Q5_K] = q5_k, [MICA_Q6_K] = q6_k, [MICA_IQ4_NL] = iq4_nl,                   \
     [MICA_IQ4_XS] = iq4_xs, [MICA_MXFP4] = mxfp4}
