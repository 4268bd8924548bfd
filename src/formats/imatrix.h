/* formats/imatrix.h: importance matrices as llama.cpp's llama-imatrix writes them, in both formats: GGUF (general.type "imatrix"; per
 * tensor sums of squared inputs of each column, and how many inputs each matrix had) and the older .dat. Values are read when they are
 * asked for: a file for a large model takes no memory. Immutable after opening; any thread may read. Judged by tests/formats/test_imatrix.c
 * and tests/interop/export_gguf.py. */
#ifndef MICA_FORMATS_IMATRIX_H
#define MICA_FORMATS_IMATRIX_H

#include <stdbool.h>
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

/* Second moments of one input, which several tensors may have (mica_imatrix_same_input): of all tokens, and of those of single experts.
 * Written by mica imatrix --covariance (docs/formats.md); llama.cpp passes over it. */
typedef struct mica_imatrix_covariance {
    const char *name;         /* of the first tensor with that input */
    uint64_t columns, offset; /* of slot 0 in the file */
    uint64_t slots;           /* each the lower triangle, row by row: mean products of columns */
    const int32_t (*of)[2];   /* [slots]: the expert (-1: all tokens; -2: nobody's), and how many tokens it saw */
} mica_imatrix_covariance;

/* What a relative squared error in each matrix of a tensor does to the output's. Written by mica imatrix --sensitivity. */
typedef struct mica_imatrix_sensitivity {
    char *name;
    float *values; /* [count] */
    uint64_t count;
} mica_imatrix_sensitivity;

typedef struct mica_imatrix {
    mica_file *file;
    char *names;                 /* owned */
    float *counts;               /* owned */
    mica_imatrix_entry *entries; /* sorted by name; owned */
    uint64_t entry_count;
    mica_imatrix_covariance *covariances; /* sorted by name; owned */
    uint64_t covariance_count;
    int32_t (*covariance_of)[2]; /* owned */
    mica_imatrix_sensitivity *sensitivities; /* sorted by name; owned */
    uint64_t sensitivity_count;
} mica_imatrix;

/* Errors: BAD_INPUT naming the file, entry, expected and got. */
mica_status mica_imatrix_open(const char *path, mica_imatrix **imatrix, mica_error *error) MICA_CHECKED;
void mica_imatrix_close(mica_imatrix *imatrix); /* NULL is fine */

/* The entry of a tensor: its own, or that of another tensor with the same input (ffn_up for ffn_gate and the other way round); NULL:
 * none. */
const mica_imatrix_entry *mica_imatrix_find(const mica_imatrix *imatrix, const char *tensor);

/* How many inputs matrix `matrix` had. */
float mica_imatrix_count(const mica_imatrix_entry *entry, uint64_t matrix);

/* The mean squared input of each of `columns` columns of a matrix; all 1 for a matrix that had none. BAD_INPUT: the entry is not of columns
 * x matrices, or a value is negative or not finite. */
mica_status mica_imatrix_read(const mica_imatrix *imatrix, const mica_imatrix_entry *entry, uint64_t matrices, uint64_t matrix,
                              uint64_t columns, float *values, mica_error *error) MICA_CHECKED;

/* ---- covariances (imatrix_covariance.c) */

#define MICA_IMATRIX_COVARIANCE_SUFFIX ".in_cov"
#define MICA_IMATRIX_COVARIANCE_OF_SUFFIX ".in_cov_of"
enum { MICA_IMATRIX_ALL_TOKENS = -1, MICA_IMATRIX_NOBODY = -2 };

/* Whether two tensors of a layer, by their names in GGUF, are multiplied with the same activations. */
bool mica_imatrix_same_input(const char *a, const char *b);

/* The covariance of a tensor's input and the slot of an expert (-1: the tensor has none): the expert's own where there is one, else that of
 * all tokens. NULL: neither. */
const mica_imatrix_covariance *mica_imatrix_find_covariance(const mica_imatrix *imatrix, const char *tensor, int64_t expert,
                                                            uint64_t *slot);

/* A slot as a matrix [columns][columns], symmetric. BAD_INPUT: a value is not finite, or negative on the diagonal. */
mica_status mica_imatrix_read_covariance(const mica_imatrix *imatrix, const mica_imatrix_covariance *covariance, uint64_t slot, float *h,
                                         mica_error *error) MICA_CHECKED;

/* ---- sensitivities */

#define MICA_IMATRIX_SENSITIVITY_SUFFIX ".sensitivity"

/* Of a tensor's matrices; NULL: it has none, or not for so many. */
const float *mica_imatrix_sensitivity_of(const mica_imatrix *imatrix, const char *tensor, uint64_t matrices);

/* What mica_imatrix_open does with a GGUF's tensors of these kinds. */
struct mica_gguf;
mica_status mica_imatrix_list_covariances(mica_imatrix *imatrix, const struct mica_gguf *gguf, mica_error *error) MICA_CHECKED;
mica_status mica_imatrix_list_sensitivities(mica_imatrix *imatrix, const struct mica_gguf *gguf, mica_error *error) MICA_CHECKED;

#endif
