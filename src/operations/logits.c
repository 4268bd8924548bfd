/* operations/logits.c: the logits of a sequence, written as they are computed. Judged by tests/operations/test_compute.c. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "operations/compute.h"

#define ROWS 64
#define NPY_HEADER_BYTES 128

typedef struct writing {
    mica_file *file;
    char *partial;
    uint64_t offset, vocabulary;
} writing;

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length > tail && strcmp(text + length - tail, end) == 0;
}

/* NumPy's format 1.0: magic, version, length of a header that is a Python dictionary, padded so that the data is aligned. */
static mica_status write_npy_header(writing *to, uint64_t tokens, mica_error *error) {
    char header[NPY_HEADER_BYTES + 1];
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)(NPY_HEADER_BYTES - 10);
    header[9] = 0;
    int length = snprintf(header + 10, NPY_HEADER_BYTES - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (%llu, %llu), }",
                          (unsigned long long)tokens, (unsigned long long)to->vocabulary);
    header[10 + length] = ' ';
    header[NPY_HEADER_BYTES - 1] = '\n';
    to->offset = NPY_HEADER_BYTES;
    return mica_file_write(to->file, 0, header, NPY_HEADER_BYTES, error);
}

static mica_status write_rows(mica_compute *compute, writing *to, uint64_t count, mica_error *error) {
    for (uint64_t first = 0, rows; first < count; first += rows) {
        rows = count - first < ROWS ? count - first : ROWS;
        mica_status status = mica_engine_logits(compute->engine, first, rows, compute->logits, error);
        uint64_t bytes = rows * to->vocabulary * sizeof(float);
        if (status == MICA_OK)
            status = mica_file_write(to->file, to->offset, compute->logits, bytes, error);
        if (status != MICA_OK)
            return status;
        to->offset += bytes;
    }
    return MICA_OK;
}

static mica_status write_logits(mica_compute *compute, const mica_compute_options *options, const int64_t *ids, uint64_t count, bool npy,
                                writing *to, mica_error *error) {
    mica_progress progress = {.what = "computing", .units_total = count, .seconds_left = -1};
    mica_status status = npy ? write_npy_header(to, count, error) : MICA_OK;
    for (uint64_t done = 0, step; done < count && status == MICA_OK; done += step) {
        uint64_t batch = mica_engine_batch(compute->engine);
        step = count - done < batch ? count - done : batch;
        progress.units_done = done;
        if (options->progress && !options->progress(options->progress_context, &progress))
            return mica_fail(error, MICA_INTERRUPTED, "interrupted after %llu of %llu tokens", (unsigned long long)done,
                             (unsigned long long)count);
        status = mica_engine_step(compute->engine, ids + done, step, error);
        if (status == MICA_OK)
            status = write_rows(compute, to, step, error);
    }
    return status == MICA_OK ? mica_file_sync(to->file, error) : status;
}

static mica_status write_file(mica_compute *compute, const mica_compute_options *options, const int64_t *ids, uint64_t count,
                              const char *output, mica_error *error) {
    mica_text partial = MICA_TEXT_INIT;
    mica_text_printf(&partial, "%s.partial", output);
    writing to = {.partial = mica_text_take(&partial), .vocabulary = compute->model->config.vocab_size};
    if (!to.partial)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", output);
    mica_status status = mica_file_create(to.partial, &to.file, error);
    if (status == MICA_OK) {
        status = write_logits(compute, options, ids, count, ends_with(output, ".npy"), &to, error);
        mica_status closed = mica_file_close(to.file, status == MICA_OK ? error : NULL);
        status = status == MICA_OK ? closed : status;
        if (status == MICA_OK)
            status = mica_file_rename(to.partial, output, error);
        if (status != MICA_OK)
            mica_file_remove(to.partial, NULL);
    }
    mica_free(to.partial);
    return status;
}

mica_status mica_logits(const char *checkpoint, const mica_compute_options *options, const mica_prompt *prompt, const char *output,
                        char **report, mica_error *error) {
    mica_compute compute;
    int64_t *ids = NULL;
    uint64_t count = 0;
    if (!ends_with(output, ".npy") && !ends_with(output, ".f32"))
        return mica_fail(error, MICA_USAGE, "%s: expected a file name that ends in .npy or .f32", output);
    mica_compute_options settings = *options;
    mica_status status = mica_compute_open_model(checkpoint, &compute, error);
    if (status == MICA_OK)
        status = mica_compute_ids(&compute, prompt, true, &ids, &count, error);
    if (status == MICA_OK && count == 0)
        status = mica_fail(error, MICA_USAGE, "expected at least one token, got none");
    settings.context = count;
    if (status == MICA_OK)
        status = mica_compute_open_engine(&compute, &settings, ROWS, 0, error);
    if (status == MICA_OK)
        status = write_file(&compute, &settings, ids, count, output, error);
    if (status == MICA_OK && report) {
        mica_text line = MICA_TEXT_INIT;
        mica_text_printf(&line, "%s: logits of %llu tokens x %llu, float32\n", output, (unsigned long long)count,
                         (unsigned long long)compute.model->config.vocab_size);
        *report = mica_text_take(&line);
    }
    mica_free(ids);
    mica_compute_close(&compute);
    return status;
}
