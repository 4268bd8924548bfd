/* formats/imatrix.h: importance matrices as llama.cpp's llama-imatrix writes them, in both formats: GGUF (general.type "imatrix"; per tensor sums of
 * squared inputs of each column, and how many inputs each matrix had) and the older .dat. Values are read when they are asked for: a file for a
 * large model takes no memory. Immutable after opening; any thread may read. Judged by tests/formats/test_imatrix.c and
 * tests/interop/export_gguf.py. */
#ifndef MICA_FORMATS_IMATRIX_H
#define MICA_FORMATS_IMATRIX_H

#include <stdint.h>

#include "base/error.h"
#include "base/file.h"

typedef struct mica_imatrix_entry {
    const char *name; /* of the tensor */
    uint64_t elements;     /* columns x matrices */
    uint64_t offset;       /* of the sums, in the file */
    uint64_t matrix_count; /* of `counts` */
    const float *counts;   /* inputs of each matrix; one for all where the file has no more */
} mica_imatrix_entry;

typedef struct mica_imatrix {
    mica_file *file;
    char *names;                 /* owned */
    float *counts;               /* owned */
    mica_imatrix_entry *entries; /* sorted by name; owned */
    uint64_t entry_count;
} mica_imatrix;

/* Errors: BAD_INPUT naming the file, entry, expected and got. */
mica_status mica_imatrix_open(const char *path, mica_imatrix **imatrix, mica_error *error) MICA_CHECKED;
void mica_imatrix_close(mica_imatrix *imatrix); /* NULL is fine */

/* The entry of a tensor: its own, or that of another tensor with the same input (ffn_up for ffn_gate and the other way round); NULL: none. */
const mica_imatrix_entry *mica_imatrix_find(const mica_imatrix *imatrix, const char *tensor);

/* How many inputs matrix `matrix` had. */
float mica_imatrix_count(const mica_imatrix_entry *entry, uint64_t matrix);

/* The mean squared input of each of `columns` columns of a matrix; all 1 for a matrix that had none. BAD_INPUT: the entry is not of columns x matrices,
 * or a value is negative or not finite. */
mica_status mica_imatrix_read(const mica_imatrix *imatrix, const mica_imatrix_entry *entry, uint64_t matrices, uint64_t matrix, uint64_t columns,
                              float *values, mica_error *error) MICA_CHECKED;

#endif
