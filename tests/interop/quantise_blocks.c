/* tests/interop/quantise_blocks TYPE: float32 on standard input, rows of 256, to blocks of ggml's TYPE on standard output, for the scripts
 * beside it. */
#include <stdio.h>

#include "numerics/quantise.h"

int main(int argc, char **argv) {
    mica_dtype dtype;
    if (argc != 2 || !mica_dtype_parse_block(argv[1], &dtype))
        return 2;
    float row[256];
    uint8_t blocks[8 * 34]; /* Q8_0 takes most */
    size_t bytes = 256 / mica_dtype_block_elements(dtype) * mica_dtype_block_bytes(dtype);
    const mica_quantise_options options = {MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, NULL};
    while (fread(row, sizeof *row, 256, stdin) == 256) {
        if (mica_quantise_rows(dtype, row, 256, 1, 256, &options, blocks, NULL) != MICA_OK || fwrite(blocks, 1, bytes, stdout) != bytes)
            return 1;
    }
    return 0;
}
