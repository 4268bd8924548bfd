/* base/quantity.c: three significant digits and a unit. Judged by tests/base/test_quantity.c. */
#include "base/quantity.h"

#include <inttypes.h>
#include <stdio.h>

static const char *show(uint64_t number, double step, const char *const units[7], char buffer[MICA_QUANTITY_BYTES]) {
    double value = (double)number;
    int unit = 0;
    while (value >= step - 0.5 && unit < 6) { /* 999.9 and 1023.9 would be shown as 1000 and 1024 */
        value /= step;
        unit++;
    }
    if (unit == 0)
        snprintf(buffer, MICA_QUANTITY_BYTES, "%" PRIu64 "%s", number, units[0]);
    else
        snprintf(buffer, MICA_QUANTITY_BYTES, "%.*f%s", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value, units[unit]);
    return buffer;
}

const char *mica_bytes_show(uint64_t bytes, char buffer[MICA_QUANTITY_BYTES]) {
    static const char *const units[7] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};
    return show(bytes, 1024, units, buffer);
}

const char *mica_count_show(uint64_t count, char buffer[MICA_QUANTITY_BYTES]) {
    static const char *const units[7] = {"", " K", " M", " B", " T", " P", " E"};
    return show(count, 1000, units, buffer);
}
