/* base/uuid.c: see the header. Judged by tests/base/test_uuid.c. */
#include "base/uuid.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

static bool is_dash(size_t at) {
    return at == 8 || at == 13 || at == 18 || at == 23;
}

void mica_uuid_show(const uint8_t uuid[MICA_UUID_BYTES], char text[MICA_UUID_TEXT_BYTES]) {
    static const char digits[] = "0123456789abcdef";
    size_t at = 0;
    for (size_t i = 0; i < MICA_UUID_BYTES; i++) {
        if (is_dash(at))
            text[at++] = '-';
        text[at++] = digits[uuid[i] >> 4];
        text[at++] = digits[uuid[i] & 15];
    }
    text[at] = '\0';
}

static int hex_value(char digit) {
    if (digit >= 'A' && digit <= 'F')
        digit = (char)(digit - 'A' + 'a');
    return digit >= '0' && digit <= '9' ? digit - '0' : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

bool mica_uuid_parse(const char *text, uint8_t uuid[MICA_UUID_BYTES]) {
    uint8_t parsed[MICA_UUID_BYTES];
    size_t at = 0;
    for (size_t i = 0; i < MICA_UUID_BYTES; i++) {
        if (is_dash(at) && text[at++] != '-')
            return false;
        const int high = hex_value(text[at]), low = high < 0 ? -1 : hex_value(text[at + 1]); /* never past the closing NUL */
        if (low < 0)
            return false;
        parsed[i] = (uint8_t)(high << 4 | low);
        at += 2;
    }
    if (text[at] != '\0')
        return false;
    memcpy(uuid, parsed, sizeof parsed);
    return true;
}

uint32_t mica_uuid_version(const uint8_t uuid[MICA_UUID_BYTES]) {
    return uuid[6] >> 4;
}

static void stamp(uint8_t uuid[MICA_UUID_BYTES], unsigned version) {
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | version << 4);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

void mica_uuid_of_digest(const uint8_t digest[MICA_SHA256_BYTES], uint8_t uuid[MICA_UUID_BYTES]) {
    memcpy(uuid, digest, MICA_UUID_BYTES);
    stamp(uuid, 8);
}

mica_status mica_uuid_random(uint8_t uuid[MICA_UUID_BYTES], mica_error *error) {
    ssize_t got;
    do {
        got = getrandom(uuid, MICA_UUID_BYTES, 0);
    } while (got < 0 && errno == EINTR);
    if (got != MICA_UUID_BYTES)
        return mica_fail_errno(error, got < 0 ? errno : EIO, "no random numbers from the system");
    stamp(uuid, 4);
    return MICA_OK;
}
