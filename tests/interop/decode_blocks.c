/* tests/interop/decode_blocks TYPE: blocks of ggml's TYPE on standard input to float32 on standard output, for the scripts beside it. */
#include <stdio.h>
#include <stdlib.h>

#include "numerics/matrix.h"

int main(int argc, char **argv) {
    mica_dtype dtype;
    if (argc != 2 || !mica_dtype_parse_block(argv[1], &dtype))
        return 2;
    uint8_t block[256];
    float values[256];
    uint32_t bytes = mica_dtype_block_bytes(dtype), elements = mica_dtype_block_elements(dtype);
    mica_matrix matrix = {.encoding = MICA_ENCODING_BLOCK, .dtype = dtype, .rows = 1, .columns = elements, .codes = block};
    while (fread(block, bytes, 1, stdin) == 1) {
        mica_matrix_decode(&matrix, 0, 0, 1, values, elements);
        if (fwrite(values, sizeof *values, elements, stdout) != elements)
            return 1;
    }
    return 0;
}
