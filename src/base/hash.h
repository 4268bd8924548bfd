/* base/hash.h: SHA-256 (libcrypto), the identity of tensors and files. */
#ifndef MICA_BASE_HASH_H
#define MICA_BASE_HASH_H

#include <stdint.h>

#include "base/error.h"

#define MICA_SHA256_BYTES 32
#define MICA_SHA256_HEX_BYTES 65 /* with the closing NUL */

typedef struct mica_sha256 {
    void *context; /* EVP_MD_CTX; owned */
} mica_sha256;

mica_status mica_sha256_init(mica_sha256 *hash, mica_error *error) MICA_CHECKED;
void mica_sha256_update(mica_sha256 *hash, const void *bytes, uint64_t length);
void mica_sha256_final(mica_sha256 *hash, uint8_t digest[MICA_SHA256_BYTES]); /* and releases */
void mica_sha256_release(mica_sha256 *hash);                                  /* after an error, before final */
mica_status mica_sha256_of(const void *bytes, uint64_t length, uint8_t digest[MICA_SHA256_BYTES], mica_error *error) MICA_CHECKED;
mica_status mica_sha256_of_file(const char *path, uint8_t digest[MICA_SHA256_BYTES], uint64_t *bytes, mica_error *error) MICA_CHECKED;
void mica_sha256_hex(const uint8_t digest[MICA_SHA256_BYTES], char hex[MICA_SHA256_HEX_BYTES]);
/* Two messages, each `prefix` and then `bytes`, side by side: with SHA instructions 1.5 times as fast as one after the other
 * (base/hash_two.c). */
typedef struct mica_sha256_message {
    const void *prefix, *bytes;
    uint64_t prefix_bytes, length;
} mica_sha256_message;
mica_status mica_sha256_of_two(const mica_sha256_message messages[2], uint8_t digests[2][MICA_SHA256_BYTES],
                               mica_error *error) MICA_CHECKED;
int mica_sha256_parse_hex(const char *hex, uint8_t digest[MICA_SHA256_BYTES]); /* 1 if 64 lower-case hex digits */

#endif
