/* base/quantity.h: large numbers as people read them. */
#ifndef MICA_BASE_QUANTITY_H
#define MICA_BASE_QUANTITY_H

#include <stdint.h>

#define MICA_QUANTITY_BYTES 24

/* "512 B", "13.2 MiB", "1.03 TiB": three digits, binary units. Returns `buffer`. */
const char *mica_bytes_show(uint64_t bytes, char buffer[MICA_QUANTITY_BYTES]);
/* "512", "13.2 M", "1.03 T": three digits, thousands. */
const char *mica_count_show(uint64_t count, char buffer[MICA_QUANTITY_BYTES]);

#endif
