/* operations/compute.c: see the header. Judged by tests/operations/test_compute.c. */
#include "operations/compute.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

#define WINDOW_DEFAULT 512
#define IDS_FILE_BYTES_MAX (UINT64_C(1) << 28)

/* One that is not to be had is told when text is met: token ids need none. */
static mica_status open_tokenizer(mica_compute *compute, mica_error *error) {
    const mica_token_files files = {compute->model->source, NULL};
    if (!mica_token_files_exist(&files))
        return MICA_OK;
    mica_status status = mica_tokenizer_open_source(compute->model->source, &compute->tokenizer, &compute->tokenizer_error);
    return status == MICA_NO_MEMORY ? mica_fail(error, status, "%s", compute->tokenizer_error.message) : MICA_OK;
}

static mica_status open_logits(mica_compute *compute, uint64_t rows, mica_error *error) {
    uint64_t vocabulary = compute->model->config.vocab_size;
    compute->logit_rows = rows;
    compute->logits = rows ? mica_reallocarray(NULL, rows * vocabulary, sizeof *compute->logits) : NULL;
    if (rows && !compute->logits)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the logits", compute->model->source->path);
    if (rows)
        memset(compute->logits, 0, rows * vocabulary * sizeof *compute->logits); /* counted before the cache gets the rest */
    return MICA_OK;
}

mica_status mica_compute_open_model(const char *checkpoint, mica_compute *compute, mica_error *error) {
    *compute = (mica_compute){.opening_seconds = -mica_seconds_now()};
    mica_status status = mica_model_open(checkpoint, NULL, &compute->model, error);
    return status == MICA_OK ? open_tokenizer(compute, error) : status;
}

mica_status mica_compute_open_engine(mica_compute *compute, const mica_compute_options *options, uint64_t logit_rows, uint64_t layer_batch,
                                     mica_error *error) {
    const mica_engine_options settings = {.precision = options->exact ? MICA_PRECISION_EXACT : MICA_PRECISION_FAST,
                                          .threads = options->threads,
                                          .reading_threads = options->reading_threads,
                                          .memory_bytes = options->memory_bytes,
                                          .context = options->context,
                                          .policy = options->cache_policy,
                                          .no_lookahead = options->no_lookahead,
                                          .batch = layer_batch,
                                          .layer_at_a_time = layer_batch > 0};
    mica_status status = open_logits(compute, logit_rows, error);
    if (status == MICA_OK)
        status = mica_engine_open(compute->model, &settings, &compute->engine, error);
    compute->opening_seconds += mica_seconds_now();
    return status;
}

void mica_compute_close(mica_compute *compute) {
    mica_engine_close(compute->engine);
    mica_tokenizer_close(compute->tokenizer);
    mica_model_close(compute->model);
    mica_free(compute->logits);
    *compute = (mica_compute){0};
}

mica_status mica_ids_parse(const char *text, mica_token_list *ids, mica_error *error) {
    for (const char *at = text; *at;) {
        uint64_t value = 0;
        size_t digits = strspn(at, "0123456789"), gap = strspn(at + digits, ", \t\r\n");
        for (size_t i = 0; i < digits && value <= UINT32_MAX; i++)
            value = value * 10 + (uint64_t)(at[i] - '0');
        if (digits && value >= UINT32_MAX)
            return mica_fail(error, MICA_USAGE, "--ids: expected ids below %lu, got '%.*s'", (unsigned long)UINT32_MAX, (int)(digits < 40 ? digits : 40), at);
        if (digits == 0 || (gap == 0 && at[digits]))
            return mica_fail(error, MICA_USAGE, "--ids: expected numbers with commas between them, got '%.40s'", at);
        mica_token_list_add(ids, (uint32_t)value);
        at += digits + gap;
    }
    return ids->failed ? mica_fail(error, MICA_NO_MEMORY, "out of memory for the ids") : MICA_OK;
}

static mica_status parse_given(const char *given, mica_token_list *list, mica_error *error) {
    char *file = NULL;
    uint64_t length;
    mica_status status = given[0] == '@' ? mica_file_load(given + 1, IDS_FILE_BYTES_MAX, &file, &length, error) : MICA_OK;
    if (status == MICA_OK && file && strlen(file) != length)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected numbers with commas between them, got a NUL byte", given + 1);
    if (status == MICA_OK)
        status = mica_ids_parse(file ? file + strspn(file, " \t\r\n") : given, list, error);
    mica_free(file);
    return status;
}

mica_status mica_compute_bos(const mica_compute *compute, const mica_prompt *prompt, int64_t *bos, mica_error *error) {
    const mica_token_roles *roles = compute->tokenizer ? mica_tokenizer_roles(compute->tokenizer) : NULL;
    int64_t id = compute->model->config.bos_token_id;
    if (id < 0 && roles && roles->bos != MICA_TOKEN_NONE)
        id = roles->bos;
    bool wanted = prompt->bos || (prompt->text && roles && roles->add_bos);
    *bos = wanted ? id : -1;
    if (prompt->bos && id < 0)
        return mica_fail(error, MICA_USAGE, "--bos: expected a model with a BOS token, got %s, which has none",
                         compute->model->source->path);
    return MICA_OK;
}

mica_status mica_compute_ids(const mica_compute *compute, const mica_prompt *prompt, bool first, int64_t **ids, uint64_t *count,
                             mica_error *error) {
    mica_token_list list = {0};
    int64_t bos = -1;
    mica_status status = MICA_OK;
    if (!prompt->text == !prompt->ids)
        return mica_fail(error, MICA_USAGE, "expected a text or token ids, got %s", prompt->text ? "both" : "neither");
    if (prompt->text && compute->tokenizer_error.status != MICA_OK)
        return mica_fail(error, compute->tokenizer_error.status, "%s", compute->tokenizer_error.message);
    if (prompt->text && !compute->tokenizer)
        return mica_fail(error, MICA_USAGE,
                         "%s: expected --ids, for there is no tokenizer beside the model (tiktoken.model, tokenizer.json)",
                         compute->model->source->path);
    if (first)
        status = mica_compute_bos(compute, prompt, &bos, error);
    if (status == MICA_OK && bos >= 0)
        mica_token_list_add(&list, (uint32_t)bos);
    if (status == MICA_OK)
        status = prompt->ids ? parse_given(prompt->ids, &list, error)
                             : mica_tokenizer_append(compute->tokenizer, prompt->text, strlen(prompt->text), true, &list, error);
    if (status == MICA_OK && list.failed)
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for the prompt");
    int64_t *wide = status == MICA_OK ? mica_reallocarray(NULL, list.count + 1, sizeof *wide) : NULL;
    if (status == MICA_OK && !wide)
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for the prompt");
    if (status == MICA_OK) {
        for (uint64_t i = 0; i < list.count; i++)
            wide[i] = list.ids[i];
        *ids = wide;
        *count = list.count;
    }
    mica_token_list_release(&list);
    return status;
}

mica_status mica_compute_window(const mica_compute *compute, uint64_t given, uint64_t *window, mica_error *error) {
    const uint64_t longest = compute->model->config.max_position_embeddings;
    if (longest && given > longest) /* here, not only at opening: whether it is reached may depend on the text */
        return mica_fail(error, MICA_USAGE, "%s: context: expected at most %llu (max_position_embeddings), got %llu",
                         compute->model->source->path, (unsigned long long)longest, (unsigned long long)given);
    *window = given ? given : longest && longest < WINDOW_DEFAULT ? longest : WINDOW_DEFAULT;
    return MICA_OK;
}

double mica_log_sum(const float *logits, uint64_t count) {
    double largest = -INFINITY, sum = 0;
    for (uint64_t i = 0; i < count; i++)
        largest = fmax(largest, (double)logits[i]);
    for (uint64_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - largest);
    return largest + log(sum);
}
