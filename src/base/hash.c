/* base/hash.c: SHA-256 through libcrypto's EVP interface. Judged by tests/base/test_hash.c. */
#include "base/hash.h"

#include <openssl/evp.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

#define CHUNK_BYTES ((uint64_t)1 << 20)

mica_status mica_sha256_init(mica_sha256 *hash, mica_error *error) {
    hash->context = EVP_MD_CTX_new();
    if (!hash->context || EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL) != 1) {
        mica_sha256_release(hash);
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a SHA-256");
    }
    return MICA_OK;
}

/* libcrypto's update and final fail only for a context that was never set up; then the digest is all zeros, which equals none. */
void mica_sha256_update(mica_sha256 *hash, const void *bytes, uint64_t length) {
    if (hash->context && EVP_DigestUpdate(hash->context, bytes, length) != 1)
        mica_sha256_release(hash);
}

void mica_sha256_final(mica_sha256 *hash, uint8_t digest[MICA_SHA256_BYTES]) {
    if (!hash->context || EVP_DigestFinal_ex(hash->context, digest, NULL) != 1)
        memset(digest, 0, MICA_SHA256_BYTES);
    mica_sha256_release(hash);
}

void mica_sha256_release(mica_sha256 *hash) {
    EVP_MD_CTX_free(hash->context);
    hash->context = NULL;
}

mica_status mica_sha256_of(const void *bytes, uint64_t length, uint8_t digest[MICA_SHA256_BYTES], mica_error *error) {
    mica_sha256 hash;
    mica_status status = mica_sha256_init(&hash, error);
    if (status == MICA_OK) {
        mica_sha256_update(&hash, bytes, length);
        mica_sha256_final(&hash, digest);
    }
    return status;
}

static mica_status hash_chunks(const mica_file *file, mica_sha256 *hash, void *chunk, mica_error *error) {
    uint64_t total = mica_file_bytes(file);
    for (uint64_t offset = 0; offset < total; offset += CHUNK_BYTES) {
        uint64_t part = total - offset < CHUNK_BYTES ? total - offset : CHUNK_BYTES;
        mica_status status = mica_file_read(file, offset, chunk, part, error);
        if (status != MICA_OK)
            return status;
        mica_sha256_update(hash, chunk, part);
    }
    return MICA_OK;
}

mica_status mica_sha256_of_file(const char *path, uint8_t digest[MICA_SHA256_BYTES], uint64_t *bytes, mica_error *error) {
    mica_file *file = NULL;
    mica_sha256 hash = {NULL};
    void *chunk = mica_malloc(CHUNK_BYTES);
    mica_status status = chunk ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
    if (status == MICA_OK)
        status = mica_sha256_init(&hash, error);
    if (status == MICA_OK)
        status = mica_file_open(path, false, &file, error);
    if (status == MICA_OK)
        status = hash_chunks(file, &hash, chunk, error);
    if (status == MICA_OK) {
        mica_sha256_final(&hash, digest);
        if (bytes)
            *bytes = mica_file_bytes(file);
    }
    mica_sha256_release(&hash);
    (void)mica_file_close(file, NULL);
    mica_free(chunk);
    return status;
}

void mica_sha256_hex(const uint8_t digest[MICA_SHA256_BYTES], char hex[MICA_SHA256_HEX_BYTES]) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < MICA_SHA256_BYTES; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[2 * MICA_SHA256_BYTES] = 0;
}

static int hex_value(char digit) {
    return digit >= '0' && digit <= '9' ? digit - '0' : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

int mica_sha256_parse_hex(const char *hex, uint8_t digest[MICA_SHA256_BYTES]) {
    uint8_t parsed[MICA_SHA256_BYTES];
    for (size_t i = 0; i < MICA_SHA256_BYTES; i++) {
        int high = hex_value(hex[2 * i]);
        int low = high < 0 ? -1 : hex_value(hex[2 * i + 1]); /* never past the closing NUL */
        if (low < 0)
            return 0;
        parsed[i] = (uint8_t)(high << 4 | low);
    }
    if (hex[2 * MICA_SHA256_BYTES] != 0)
        return 0;
    memcpy(digest, parsed, sizeof parsed);
    return 1;
}
