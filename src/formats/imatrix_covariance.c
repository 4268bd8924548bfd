/* formats/imatrix_covariance.c: the parts of an importance matrix that llama.cpp passes over: NAME.in_cov, F32 [slots][n (n + 1) / 2], and
 * NAME.in_cov_of, I32 [slots][2]; NAME.sensitivity, F32 (docs/formats.md). Refuses what does not fit together. Judged by
 * tests/formats/test_imatrix.c and tests/fuzz. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "formats/gguf.h"
#include "formats/imatrix.h"

#define COLUMNS_MAX (UINT64_C(1) << 20)

static mica_status no_memory(const mica_imatrix *imatrix, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its covariances", mica_file_path(imatrix->file));
}

/* ---- which tensors share an input */

static const char *const inputs_of_attention[] = {"attn_q_a", "attn_kv_a_mqa", "attn_q", "attn_k", "attn_v", NULL};
static const char *const inputs_of_feed[] = {"ffn_gate", "ffn_up", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_shexp", "ffn_up_shexp", NULL};
static const char *const *const shared_inputs[] = {inputs_of_attention, inputs_of_feed};

/* "blk.3.ffn_up.weight": the length of "blk.3." and of "ffn_up"; false for other names. */
static bool split_name(const char *name, size_t *lead, size_t *middle) {
    if (strncmp(name, "blk.", 4) != 0)
        return false;
    const char *dot = strchr(name + 4, '.'), *end = dot ? strchr(dot + 1, '.') : NULL;
    if (!end || strcmp(end, ".weight") != 0)
        return false;
    *lead = (size_t)(dot + 1 - name);
    *middle = (size_t)(end - dot - 1);
    return true;
}

static const char *const *class_of(const char *middle, size_t length) {
    for (size_t i = 0; i < sizeof shared_inputs / sizeof *shared_inputs; i++)
        for (const char *const *name = shared_inputs[i]; *name; name++)
            if (strlen(*name) == length && memcmp(*name, middle, length) == 0)
                return shared_inputs[i];
    return NULL;
}

bool mica_imatrix_same_input(const char *a, const char *b) {
    size_t lead[2], middle[2];
    if (strcmp(a, b) == 0)
        return true;
    if (!split_name(a, &lead[0], &middle[0]) || !split_name(b, &lead[1], &middle[1]) || lead[0] != lead[1] || memcmp(a, b, lead[0]) != 0)
        return false;
    const char *const *class = class_of(a + lead[0], middle[0]);
    return class && class == class_of(b + lead[1], middle[1]);
}

/* ---- reading */

static int compare_covariances(const void *a, const void *b) {
    return strcmp(((const mica_imatrix_covariance *)a)->name, ((const mica_imatrix_covariance *)b)->name);
}

/* n of n (n + 1) / 2; 0: it is no such number. */
static uint64_t triangle_side(uint64_t elements) {
    uint64_t side = (uint64_t)sqrt(2.0 * (double)elements);
    while (side > 0 && side * (side + 1) / 2 > elements)
        side--;
    return side <= COLUMNS_MAX && side * (side + 1) / 2 == elements ? side : 0;
}

static const mica_tensor *find_tensor(const mica_gguf *gguf, const char *name) {
    for (uint64_t i = 0; i < gguf->tensor_count; i++)
        if (strcmp(gguf->tensors[i].name, name) == 0)
            return &gguf->tensors[i];
    return NULL;
}

static bool ends_with(const mica_tensor *tensor, const char *suffix, size_t *length) {
    const size_t whole = strlen(tensor->name), tail = strlen(suffix);
    *length = whole > tail ? whole - tail : 0;
    return whole > tail && strcmp(tensor->name + *length, suffix) == 0;
}

static bool is_covariance(const mica_tensor *tensor, size_t *length) {
    return ends_with(tensor, MICA_IMATRIX_COVARIANCE_SUFFIX, length);
}

static mica_status read_one(mica_imatrix *imatrix, const mica_gguf *gguf, const mica_tensor *values, size_t length, uint64_t first,
                            mica_error *error) {
    const char *path = mica_file_path(imatrix->file);
    char name[MICA_GGUF_TENSOR_NAME_BYTES + sizeof MICA_IMATRIX_COVARIANCE_OF_SUFFIX];
    snprintf(name, sizeof name, "%.*s%s", (int)length, values->name, MICA_IMATRIX_COVARIANCE_OF_SUFFIX);
    const mica_tensor *of = find_tensor(gguf, name);
    const uint64_t row = values->rank ? values->shape[values->rank - 1] : 0, slots = row ? values->elements / row : 0,
                   side = triangle_side(row);
    if (values->dtype != MICA_F32 || side == 0 || !of || of->dtype != MICA_I32 || of->elements != 2 * slots)
        return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected F32 triangles, and beside them %s, I32, with two numbers for each", path,
                         values->name, name);
    mica_imatrix_covariance *made = &imatrix->covariances[imatrix->covariance_count];
    *made = (mica_imatrix_covariance){.name = mica_strdup(name), .columns = side, .offset = values->offset, .slots = slots,
                                      .of = (const int32_t (*)[2])imatrix->covariance_of + first};
    if (!made->name)
        return no_memory(imatrix, error);
    imatrix->covariance_count++;
    ((char *)made->name)[length] = 0;
    return mica_file_read(imatrix->file, of->offset, imatrix->covariance_of + first, of->bytes, error);
}

mica_status mica_imatrix_list_covariances(mica_imatrix *imatrix, const mica_gguf *gguf, mica_error *error) {
    uint64_t count = 0, slots = 0, first = 0;
    size_t length;
    for (uint64_t i = 0; i < gguf->tensor_count; i++)
        if (is_covariance(&gguf->tensors[i], &length)) {
            const mica_tensor *tensor = &gguf->tensors[i];
            count++;
            slots += tensor->rank && tensor->shape[tensor->rank - 1] ? tensor->elements / tensor->shape[tensor->rank - 1] : 0;
        }
    if (count == 0)
        return MICA_OK;
    imatrix->covariances = mica_calloc(count, sizeof *imatrix->covariances);
    imatrix->covariance_of = mica_calloc(slots + 1, sizeof *imatrix->covariance_of);
    mica_status status = imatrix->covariances && imatrix->covariance_of ? MICA_OK : no_memory(imatrix, error);
    for (uint64_t i = 0; status == MICA_OK && i < gguf->tensor_count; i++)
        if (is_covariance(&gguf->tensors[i], &length)) {
            status = read_one(imatrix, gguf, &gguf->tensors[i], length, first, error);
            if (status == MICA_OK)
                first += imatrix->covariances[imatrix->covariance_count - 1].slots;
        }
    if (status == MICA_OK)
        qsort(imatrix->covariances, imatrix->covariance_count, sizeof *imatrix->covariances, compare_covariances);
    return status;
}

/* ---- finding */

static const mica_imatrix_covariance *find_name(const mica_imatrix *imatrix, const char *name) {
    const mica_imatrix_covariance key = {.name = name};
    return imatrix->covariance_count ? bsearch(&key, imatrix->covariances, imatrix->covariance_count, sizeof key, compare_covariances)
                                     : NULL;
}

static const mica_imatrix_covariance *find_input(const mica_imatrix *imatrix, const char *tensor) {
    size_t lead, middle;
    const mica_imatrix_covariance *found = find_name(imatrix, tensor);
    const char *const *class = !found && split_name(tensor, &lead, &middle) ? class_of(tensor + lead, middle) : NULL;
    for (; class && !found && *class; class ++) {
        char name[MICA_GGUF_TENSOR_NAME_BYTES];
        snprintf(name, sizeof name, "%.*s%s.weight", (int)lead, tensor, *class);
        found = find_name(imatrix, name);
    }
    return found;
}

const mica_imatrix_covariance *mica_imatrix_find_covariance(const mica_imatrix *imatrix, const char *tensor, int64_t expert,
                                                            uint64_t *slot) {
    const mica_imatrix_covariance *found = find_input(imatrix, tensor), *result = NULL;
    for (uint64_t i = 0; found && i < found->slots; i++) {
        if (found->of[i][1] <= 0)
            continue;
        if (expert >= 0 && found->of[i][0] == expert) {
            *slot = i;
            return found;
        }
        if (found->of[i][0] == MICA_IMATRIX_ALL_TOKENS) {
            *slot = i;
            result = found;
        }
    }
    return result;
}

mica_status mica_imatrix_read_covariance(const mica_imatrix *imatrix, const mica_imatrix_covariance *covariance, uint64_t slot, float *h,
                                         mica_error *error) {
    const uint64_t n = covariance->columns, triangle = n * (n + 1) / 2;
    uint64_t at = covariance->offset + slot * triangle * sizeof *h;
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < n; i++) {
        status = mica_file_read(imatrix->file, at, h + i * n, (i + 1) * sizeof *h, error);
        at += (i + 1) * sizeof *h;
        for (uint64_t j = 0; status == MICA_OK && j <= i; j++) {
            if (!isfinite(h[i * n + j]) || (i == j && h[i * n + j] < 0))
                return mica_fail(error, MICA_BAD_INPUT,
                                 "%s: %s: covariance %llu of columns %llu and %llu: expected a second moment, got %g",
                                 mica_file_path(imatrix->file), covariance->name, (unsigned long long)slot, (unsigned long long)i,
                                 (unsigned long long)j, (double)h[i * n + j]);
            h[j * n + i] = h[i * n + j];
        }
    }
    return status;
}

/* ---- sensitivities */

static int compare_sensitivities(const void *a, const void *b) {
    return strcmp(((const mica_imatrix_sensitivity *)a)->name, ((const mica_imatrix_sensitivity *)b)->name);
}

static mica_status read_sensitivity(mica_imatrix *imatrix, const mica_tensor *tensor, size_t length, mica_error *error) {
    mica_imatrix_sensitivity *made = &imatrix->sensitivities[imatrix->sensitivity_count];
    if (tensor->dtype != MICA_F32)
        return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected F32, got %s", mica_file_path(imatrix->file), tensor->name,
                         mica_dtype_name(tensor->dtype));
    made->name = mica_strdup(tensor->name);
    made->values = mica_malloc(tensor->bytes + 1);
    made->count = tensor->elements;
    imatrix->sensitivity_count++;
    if (!made->name || !made->values)
        return no_memory(imatrix, error);
    made->name[length] = 0;
    mica_status status = mica_file_read(imatrix->file, tensor->offset, made->values, tensor->bytes, error);
    for (uint64_t i = 0; status == MICA_OK && i < made->count; i++)
        if (!(made->values[i] >= 0) || isinf(made->values[i]))
            status = mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected values that are not negative, got %g at %llu",
                               mica_file_path(imatrix->file), tensor->name, (double)made->values[i], (unsigned long long)i);
    return status;
}

mica_status mica_imatrix_list_sensitivities(mica_imatrix *imatrix, const mica_gguf *gguf, mica_error *error) {
    size_t length;
    uint64_t count = 0;
    for (uint64_t i = 0; i < gguf->tensor_count; i++)
        count += ends_with(&gguf->tensors[i], MICA_IMATRIX_SENSITIVITY_SUFFIX, &length);
    imatrix->sensitivities = count ? mica_calloc(count, sizeof *imatrix->sensitivities) : NULL;
    mica_status status = count && !imatrix->sensitivities ? no_memory(imatrix, error) : MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < gguf->tensor_count; i++)
        if (ends_with(&gguf->tensors[i], MICA_IMATRIX_SENSITIVITY_SUFFIX, &length))
            status = read_sensitivity(imatrix, &gguf->tensors[i], length, error);
    if (status == MICA_OK && count)
        qsort(imatrix->sensitivities, count, sizeof *imatrix->sensitivities, compare_sensitivities);
    return status;
}

const float *mica_imatrix_sensitivity_of(const mica_imatrix *imatrix, const char *tensor, uint64_t matrices) {
    const mica_imatrix_sensitivity key = {.name = (char *)(uintptr_t)tensor}, *found = NULL;
    if (imatrix->sensitivity_count)
        found = bsearch(&key, imatrix->sensitivities, imatrix->sensitivity_count, sizeof key, compare_sensitivities);
    return found && found->count == matrices ? found->values : NULL;
}
