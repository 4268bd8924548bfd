/* numerics/encode.c: see encode.h. */
#include "numerics/encode.h"

#include "numerics/elementwise.h"

bool mica_encode_plain(mica_dtype dtype, const float *values, uint64_t count, void *out) {
    uint8_t *bytes = out;
    switch (dtype) {
    case MICA_F32: memcpy(out, values, count * sizeof *values); return true;
    case MICA_F16:
        for (uint64_t i = 0; i < count; i++) {
            uint16_t code = mica_f16_encode(values[i]);
            memcpy(bytes + 2 * i, &code, sizeof code);
        }
        return true;
    case MICA_BF16: mica_bf16_of_float(values, count, out); return true;
    default: return false;
    }
}
