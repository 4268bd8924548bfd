/* SHA-256 against the vectors of FIPS 180-4 and in pieces against the whole. */
#include "base/hash.h"

#include "base/cpu.h"
#include "base/scratch.h"

static void known_digests(void **state) {
    (void)state;
    static const struct {
        const char *text, *hex;
    } rows[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t digest[MICA_SHA256_BYTES], parsed[MICA_SHA256_BYTES];
        char hex[MICA_SHA256_HEX_BYTES];
        mica_error error;
        assert_int_equal(mica_sha256_of(rows[i].text, strlen(rows[i].text), digest, &error), MICA_OK);
        mica_sha256_hex(digest, hex);
        assert_string_equal(hex, rows[i].hex);
        assert_int_equal(mica_sha256_parse_hex(hex, parsed), 1);
        assert_memory_equal(parsed, digest, sizeof digest);
    }
}

static void pieces_and_files_give_the_same(void **state) {
    (void)state;
    size_t length = (2u << 20) + 12345; /* several chunks of a file's reading, the last one ragged */
    uint8_t *bytes = malloc(length), whole[MICA_SHA256_BYTES], pieces[MICA_SHA256_BYTES], file[MICA_SHA256_BYTES];
    uint32_t random = 1;
    for (size_t i = 0; i < length; i++) {
        random = random * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(random >> 24);
    }
    mica_error error;
    mica_sha256 hash;
    assert_int_equal(mica_sha256_of(bytes, length, whole, &error), MICA_OK);
    assert_int_equal(mica_sha256_init(&hash, &error), MICA_OK);
    for (size_t at = 0; at < length; at += 99991)
        mica_sha256_update(&hash, bytes + at, length - at < 99991 ? length - at : 99991);
    mica_sha256_final(&hash, pieces);
    assert_memory_equal(pieces, whole, sizeof whole);
    mica_sha256_release(&hash); /* after final: nothing left to do */

    scratch_write("data", bytes, length);
    uint64_t counted = 0;
    assert_int_equal(mica_sha256_of_file(scratch("data"), file, &counted, &error), MICA_OK);
    assert_memory_equal(file, whole, sizeof whole);
    assert_int_equal(counted, length);
    assert_int_equal(mica_sha256_of_file(scratch("absent"), file, NULL, &error), MICA_IO);
    assert_non_null(strstr(error.message, "absent"));
    free(bytes);
}

/* Every length across three blocks, with prefixes that leave every alignment; long ones, one of which ends far before the other. With the
 * processor's own instructions and without. */
static void two_at_once_are_as_each_alone(void **state) {
    (void)state;
    static const uint64_t lengths[][2] = {{0, 0}, {100000, 7}, {64, 99999}, {4096, 65536}};
    const uint64_t small = 3 * 64 + 1, prefix_max = 140, most = 100000;
    uint8_t *bytes = malloc(prefix_max + most);
    uint32_t random = 7;
    for (uint64_t i = 0; i < prefix_max + most; i++) {
        random = random * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(random >> 24);
    }
    for (int portable = 0; portable < 2; portable++) {
        mica_cpu_select(portable ? MICA_CPU_PORTABLE : mica_cpu_detected());
        assert_true(!portable || !mica_cpu_has_sha());
        for (uint64_t run = 0; run < small * 3 + sizeof lengths / sizeof lengths[0]; run++) {
            const bool large = run >= small * 3;
            const uint64_t first = large ? lengths[run - small * 3][0] : run % small,
                           second = large ? lengths[run - small * 3][1] : run * 7 % small;
            const mica_sha256_message messages[2] = {
                {.prefix = bytes, .bytes = bytes + run % prefix_max, .prefix_bytes = run % prefix_max, .length = first},
                {.prefix = bytes, .bytes = bytes + run * 5 % 67, .prefix_bytes = run * 5 % 67, .length = second}};
            uint8_t digests[2][MICA_SHA256_BYTES], alone[MICA_SHA256_BYTES];
            mica_error error;
            assert_int_equal(mica_sha256_of_two(messages, digests, &error), MICA_OK);
            for (int i = 0; i < 2; i++) {
                assert_int_equal(mica_sha256_of(bytes, messages[i].prefix_bytes + messages[i].length, alone, &error), MICA_OK);
                assert_memory_equal(digests[i], alone, sizeof alone);
            }
        }
    }
    mica_cpu_select(mica_cpu_detected());
    free(bytes);
}

static void what_is_no_digest(void **state) {
    (void)state;
    char hex[MICA_SHA256_HEX_BYTES + 1];
    uint8_t digest[MICA_SHA256_BYTES];
    for (size_t length = 0; length <= 65; length++) {
        memset(hex, 'a', length);
        hex[length] = 0;
        assert_int_equal(mica_sha256_parse_hex(hex, digest), length == 64);
    }
    hex[64] = 0;
    for (size_t at = 0; at < 64; at++) {
        for (const char *bad = "gA /:`"; *bad; bad++) {
            hex[at] = *bad;
            assert_int_equal(mica_sha256_parse_hex(hex, digest), 0);
        }
        hex[at] = 'f';
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_digests),
        cmocka_unit_test(pieces_and_files_give_the_same),
        cmocka_unit_test(two_at_once_are_as_each_alone),
        cmocka_unit_test(what_is_no_digest),
    };
    return cmocka_run_group_tests_name("hash", tests, scratch_make, scratch_remove);
}
