/* base/uuid.h: universally unique identifiers (RFC 9562) as text: 36 characters, lower-case hexadecimal. */
#ifndef MICA_BASE_UUID_H
#define MICA_BASE_UUID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"

#define MICA_UUID_BYTES 16
#define MICA_UUID_TEXT_BYTES 37 /* with the closing NUL */

void mica_uuid_show(const uint8_t uuid[MICA_UUID_BYTES], char text[MICA_UUID_TEXT_BYTES]);
/* 8-4-4-4-12 hexadecimal digits of either case, nothing else. */
bool mica_uuid_parse(const char *text, uint8_t uuid[MICA_UUID_BYTES]);
uint32_t mica_uuid_version(const uint8_t uuid[MICA_UUID_BYTES]); /* 0 … 15 */

/* Version 8: the digest's first 16 bytes but for the six bits of version and variant. */
void mica_uuid_of_digest(const uint8_t digest[MICA_SHA256_BYTES], uint8_t uuid[MICA_UUID_BYTES]);
/* Version 4: from the system's random numbers. */
mica_status mica_uuid_random(uint8_t uuid[MICA_UUID_BYTES], mica_error *error) MICA_CHECKED;

#endif
