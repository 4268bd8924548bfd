/* base/hash_two.c: two SHA-256 side by side. Each round of a message waits for the one before it, and the processor's SHA instructions take
 * several cycles: one message alone leaves them idle most of the time. Where there are none, libcrypto does one after the other. Source:
 * FIPS 180-4, 5.1.1 (padding), 6.2 (the rounds). Judged against libcrypto by tests/base/test_hash.c. */
#include <string.h>

#include "base/cpu.h"
#include "base/hash.h"

static mica_status one_by_one(const mica_sha256_message messages[2], uint8_t digests[2][MICA_SHA256_BYTES], mica_error *error) {
    for (int i = 0; i < 2; i++) {
        mica_sha256 hash;
        const mica_status status = mica_sha256_init(&hash, error);
        if (status != MICA_OK)
            return status;
        mica_sha256_update(&hash, messages[i].prefix, messages[i].prefix_bytes);
        mica_sha256_update(&hash, messages[i].bytes, messages[i].length);
        mica_sha256_final(&hash, digests[i]);
    }
    return MICA_OK;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define SHA_TARGET __attribute__((target("sha,sse4.1,ssse3")))
#define BLOCK_BYTES 64u
#define PADDING_BYTES_MAX (BLOCK_BYTES + 9) /* 0x80, zeros, the length in bits */

/* Fractional parts of the cube roots of the first 64 primes. */
static const uint32_t round_constants[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

typedef struct hash_lane { /* one message on its way */
    __m128i abef, cdgh; /* the state's eight words, as the instructions want them */
    const uint8_t *part[3]; /* prefix, bytes, padding */
    uint64_t left[3];
    const uint8_t *next; /* whole blocks that lie together */
    uint64_t blocks;
    uint8_t padding[PADDING_BYTES_MAX], edge[BLOCK_BYTES]; /* edge: a block that takes its bytes from several parts */
} hash_lane;

static void start(hash_lane *lane, const mica_sha256_message *message) {
    /* Words a to h: fractional parts of the square roots of the first 8 primes; an __m128i names its highest word first. */
    lane->abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
    lane->cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
    const uint64_t total = message->prefix_bytes + message->length, bits = 8 * total;
    const uint64_t zeros = (2 * BLOCK_BYTES - 9 - total % BLOCK_BYTES) % BLOCK_BYTES;
    memset(lane->padding, 0, sizeof lane->padding);
    lane->padding[0] = 0x80;
    for (uint64_t i = 0; i < 8; i++)
        lane->padding[1 + zeros + i] = (uint8_t)(bits >> (56 - 8 * i));
    lane->part[0] = message->prefix;
    lane->part[1] = message->bytes;
    lane->part[2] = lane->padding;
    lane->left[0] = message->prefix_bytes;
    lane->left[1] = message->length;
    lane->left[2] = 1 + zeros + 8;
    lane->blocks = 0;
}

/* The next blocks that lie together; false when the message has ended. */
static bool refill(hash_lane *lane) {
    if (lane->blocks > 0)
        return true;
    int part = 0;
    while (part < 3 && lane->left[part] == 0)
        part++;
    if (part == 3)
        return false;
    if (lane->left[part] >= BLOCK_BYTES) {
        lane->next = lane->part[part];
        lane->blocks = lane->left[part] / BLOCK_BYTES;
        lane->part[part] += lane->blocks * BLOCK_BYTES;
        lane->left[part] %= BLOCK_BYTES;
        return true;
    }
    for (uint64_t filled = 0; filled < BLOCK_BYTES; part++) { /* the padding makes the whole a multiple */
        const uint64_t taken = lane->left[part] < BLOCK_BYTES - filled ? lane->left[part] : BLOCK_BYTES - filled;
        if (taken > 0)
            memcpy(lane->edge + filled, lane->part[part], taken);
        lane->part[part] += taken;
        lane->left[part] -= taken;
        filled += taken;
    }
    lane->next = lane->edge;
    lane->blocks = 1;
    return true;
}

/* `blocks` of each of `count` lanes; inlined with a constant count, so that everything stays in registers. */
SHA_TARGET __attribute__((always_inline)) static inline void compress(hash_lane *lanes, const int count, uint64_t blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203); /* words of a message are big-endian */
    __m128i abef[2], cdgh[2];
    for (int l = 0; l < count; l++) {
        abef[l] = lanes[l].abef;
        cdgh[l] = lanes[l].cdgh;
    }
    for (uint64_t block = 0; block < blocks; block++) {
        __m128i words[2][4], abef_before[2], cdgh_before[2];
        for (int l = 0; l < count; l++) {
            abef_before[l] = abef[l];
            cdgh_before[l] = cdgh[l];
            for (int i = 0; i < 4; i++)
                words[l][i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(lanes[l].next + block * BLOCK_BYTES) + i),
                                               swap);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) { /* four rounds, and the words of those sixteen rounds on */
            const __m128i constants = _mm_load_si128((const __m128i *)(const void *)round_constants + i);
#pragma GCC unroll 2
            for (int l = 0; l < count; l++) {
                __m128i *w = words[l];
                const __m128i sum = _mm_add_epi32(w[i % 4], constants);
                cdgh[l] = _mm_sha256rnds2_epu32(cdgh[l], abef[l], sum);
                abef[l] = _mm_sha256rnds2_epu32(abef[l], cdgh[l], _mm_shuffle_epi32(sum, 0x0e));
                if (i < 12)
                    w[i % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]),
                                                                  _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4)),
                                                    w[(i + 3) % 4]);
            }
        }
        for (int l = 0; l < count; l++) {
            abef[l] = _mm_add_epi32(abef[l], abef_before[l]);
            cdgh[l] = _mm_add_epi32(cdgh[l], cdgh_before[l]);
        }
    }
    for (int l = 0; l < count; l++) {
        lanes[l].abef = abef[l];
        lanes[l].cdgh = cdgh[l];
        lanes[l].next += blocks * BLOCK_BYTES;
        lanes[l].blocks -= blocks;
    }
}

SHA_TARGET static void compress_one(hash_lane *lane) {
    compress(lane, 1, lane->blocks);
}

SHA_TARGET static void compress_both(hash_lane lanes[2]) {
    compress(lanes, 2, lanes[0].blocks < lanes[1].blocks ? lanes[0].blocks : lanes[1].blocks);
}

static void write_digest(const hash_lane *lane, uint8_t digest[MICA_SHA256_BYTES]) {
    uint32_t low[4], high[4];
    _mm_storeu_si128((__m128i *)(void *)high, lane->abef); /* f e b a */
    _mm_storeu_si128((__m128i *)(void *)low, lane->cdgh);  /* h g d c */
    const uint32_t words[8] = {high[3], high[2], low[3], low[2], high[1], high[0], low[1], low[0]};
    for (int i = 0; i < MICA_SHA256_BYTES; i++)
        digest[i] = (uint8_t)(words[i / 4] >> (24 - i % 4 * 8));
}

mica_status mica_sha256_of_two(const mica_sha256_message messages[2], uint8_t digests[2][MICA_SHA256_BYTES], mica_error *error) {
    if (!mica_cpu_has_sha())
        return one_by_one(messages, digests, error);
    hash_lane lanes[2];
    start(&lanes[0], &messages[0]);
    start(&lanes[1], &messages[1]);
    for (;;) {
        const bool first = refill(&lanes[0]), second = refill(&lanes[1]);
        if (first && second)
            compress_both(lanes);
        else if (first || second)
            compress_one(&lanes[first ? 0 : 1]);
        else
            break;
    }
    write_digest(&lanes[0], digests[0]);
    write_digest(&lanes[1], digests[1]);
    return MICA_OK;
}
#else
mica_status mica_sha256_of_two(const mica_sha256_message messages[2], uint8_t digests[2][MICA_SHA256_BYTES], mica_error *error) {
    return one_by_one(messages, digests, error);
}
#endif
