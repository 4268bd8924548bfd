/* operations/perplexity.c: how well a model foretells a text, and how far it is from another. Sums are double, over float32 logits.
 * Judged by tests/operations/test_compute.c against tiny-k2's golden value. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "operations/compute.h"
#include "operations/output.h"

#define ROWS 64

typedef struct losses { /* of one model */
    double sum, squares; /* of the negative log-likelihoods */
} losses;

typedef struct comparing {
    mica_compute sides[2]; /* the model, and the one it is compared with */
    uint32_t count;
    losses scores[2];
    double divergence, divergence_squares, divergence_largest;
    uint64_t agreements, tokens, windows, window;
} comparing;

static uint64_t likeliest(const float *logits, uint64_t count) {
    uint64_t best = 0;
    for (uint64_t i = 1; i < count; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* KL(other || model) of one token's distributions, in nats. */
static double divergence_of(const float *model, double model_sum, const float *other, double other_sum, uint64_t count) {
    double sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        double p = (double)other[i] - other_sum;
        sum += exp(p) * (p - ((double)model[i] - model_sum));
    }
    return sum;
}

static void score_token(comparing *work, uint64_t row, int64_t next) {
    uint64_t vocabulary = work->sides[0].model->config.vocab_size;
    const float *logits[2] = {NULL, NULL};
    double sums[2] = {0, 0};
    for (uint32_t i = 0; i < work->count; i++) {
        logits[i] = work->sides[i].logits + row * vocabulary;
        sums[i] = mica_log_sum(logits[i], vocabulary);
        double loss = sums[i] - (double)logits[i][next];
        work->scores[i].sum += loss;
        work->scores[i].squares += loss * loss;
    }
    work->tokens++;
    if (work->count == 1)
        return;
    double divergence = divergence_of(logits[0], sums[0], logits[1], sums[1], vocabulary);
    work->divergence += divergence;
    work->divergence_squares += divergence * divergence;
    work->divergence_largest = fmax(work->divergence_largest, divergence);
    work->agreements += likeliest(logits[0], vocabulary) == likeliest(logits[1], vocabulary);
}

/* One window, alone: in steps of the engine's batch; row i foretells token i + 1. */
static mica_status score_window(comparing *work, const int64_t *ids, uint64_t count, mica_error *error) {
    mica_status status = MICA_OK;
    const uint64_t batch = mica_engine_batch(work->sides[0].engine); /* of both: they have one context */
    for (uint32_t i = 0; i < work->count; i++)
        mica_engine_rewind(work->sides[i].engine, 0);
    for (uint64_t done = 0, step; done < count; done += step) {
        step = count - done < batch ? count - done : batch;
        for (uint32_t i = 0; i < work->count && status == MICA_OK; i++)
            status = mica_engine_step(work->sides[i].engine, ids + done, step, error);
        for (uint64_t first = 0, rows; first < step; first += rows) {
            rows = step - first < ROWS ? step - first : ROWS;
            for (uint32_t i = 0; i < work->count && status == MICA_OK; i++)
                status = mica_engine_logits(work->sides[i].engine, first, rows, work->sides[i].logits, error);
            if (status != MICA_OK)
                return status;
            for (uint64_t row = 0; row < rows && done + first + row + 1 < count; row++)
                score_token(work, row, ids[done + first + row + 1]);
        }
    }
    work->windows++;
    return status;
}

static mica_status score_all(comparing *work, const mica_compute_options *options, const int64_t *ids, uint64_t count, int64_t bos,
                             mica_error *error) {
    const uint64_t body = work->window - (bos >= 0), windows = count / body;
    int64_t *window = mica_reallocarray(NULL, work->window + 1, sizeof *window);
    mica_progress progress = {.what = "computing", .units_total = windows, .seconds_left = -1};
    double begin = mica_seconds_now();
    mica_status status = window ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for a window");
    for (uint64_t i = 0; i < windows && status == MICA_OK; i++) {
        progress.units_done = i;
        progress.seconds = mica_seconds_now() - begin;
        progress.seconds_left = i ? progress.seconds / (double)i * (double)(windows - i) : -1;
        if (options->progress && !options->progress(options->progress_context, &progress)) {
            status = mica_fail(error, MICA_INTERRUPTED, "interrupted after %llu of %llu windows", (unsigned long long)i,
                               (unsigned long long)windows);
            break;
        }
        window[0] = bos;
        memcpy(window + (bos >= 0), ids + i * body, body * sizeof *window);
        status = score_window(work, window, work->window, error);
    }
    mica_free(window);
    return status;
}

/* ---- the report */

static double error_of(double sum, double squares, uint64_t count) {
    double n = (double)count, mean = sum / n;
    return count > 1 ? sqrt(fmax(squares / n - mean * mean, 0) / (n - 1)) : NAN;
}

static void write_score(mica_json_writer *json, const char *key, const losses *score, uint64_t tokens) {
    double mean = score->sum / (double)tokens;
    mica_json_open_object(json, key);
    mica_json_double(json, "nll", mean);
    mica_json_double(json, "nll_standard_error", error_of(score->sum, score->squares, tokens));
    mica_json_double(json, "perplexity", exp(mean));
    mica_json_close_object(json);
}

static mica_status give_report(const comparing *work, const char *checkpoint, const char *against, const mica_compute_options *options,
                               char **text, char **json, mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    double tokens = (double)work->tokens, nll = work->scores[0].sum / tokens;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "checkpoint", checkpoint);
    mica_json_string(&writer, "precision", options->exact ? "exact" : "fast");
    mica_json_u64(&writer, "window", work->window);
    mica_json_u64(&writer, "windows", work->windows);
    mica_json_u64(&writer, "tokens_scored", work->tokens);
    write_score(&writer, "model", &work->scores[0], work->tokens);
    mica_text_printf(
        &words, "%s\n\ntokens        %llu scored, in %llu window%s of %llu\nNLL           %.6f ± %.6f nats a token\nperplexity    %.4f\n",
        checkpoint, (unsigned long long)work->tokens, (unsigned long long)work->windows, work->windows == 1 ? "" : "s",
        (unsigned long long)work->window, nll, error_of(work->scores[0].sum, work->scores[0].squares, work->tokens), exp(nll));
    if (work->count == 2) {
        double kl = work->divergence / tokens, other = work->scores[1].sum / tokens;
        mica_json_string(&writer, "against", against);
        write_score(&writer, "other", &work->scores[1], work->tokens);
        mica_json_open_object(&writer, "comparison");
        mica_json_double(&writer, "kl_mean", kl);
        mica_json_double(&writer, "kl_standard_error", error_of(work->divergence, work->divergence_squares, work->tokens));
        mica_json_double(&writer, "kl_largest", work->divergence_largest);
        mica_json_double(&writer, "top1_agreement", (double)work->agreements / tokens);
        mica_json_close_object(&writer);
        mica_text_printf(
            &words,
            "\nagainst       %s\n  NLL         %.6f nats a token, perplexity %.4f\n  KL          %.6f ± %.6f nats, at most %.4f\n"
            "  top 1       %.2f%% the same token\n",
            against, other, exp(other), kl, error_of(work->divergence, work->divergence_squares, work->tokens), work->divergence_largest,
            100 * (double)work->agreements / tokens);
    }
    mica_json_close_object(&writer);
    return mica_output_give(MICA_OK, &words, &writer, text, json, error);
}

static mica_status check_pair(const comparing *work, mica_error *error) {
    uint64_t sizes[2] = {work->sides[0].model->config.vocab_size, work->sides[1].model->config.vocab_size};
    if (sizes[0] == sizes[1])
        return MICA_OK;
    return mica_fail(error, MICA_USAGE, "%s: vocab_size: expected that of %s (%llu), got %llu", work->sides[1].model->source->path,
                     work->sides[0].model->source->path, (unsigned long long)sizes[0], (unsigned long long)sizes[1]);
}

/* Behind a budget that was refused, which is not the one that was given. */
static void tell_halves(mica_error *error) {
    const size_t length = strlen(error->message);
    if (strstr(error->message, ": memory: "))
        snprintf(error->message + length, sizeof error->message - length, ", a half of the budget: the other checkpoint has as much");
}

static mica_status run(comparing *work, const mica_compute_options *options, const mica_prompt *prompt, mica_error *error) {
    mica_compute_options settings = *options;
    int64_t *ids = NULL, bos = -1;
    uint64_t count = 0;
    mica_status status = mica_compute_ids(&work->sides[0], prompt, false, &ids, &count, error);
    if (status == MICA_OK)
        status = mica_compute_bos(&work->sides[0], prompt, &bos, error);
    if (status == MICA_OK && count + (bos >= 0) < 2)
        status = mica_fail(error, MICA_USAGE, "expected at least two tokens, of which the second is scored, got %llu",
                           (unsigned long long)count);
    for (uint32_t i = 0; i < work->count && status == MICA_OK; i++) {
        uint64_t window = 0;
        status = mica_compute_window(&work->sides[i], options->context, &window, error);
        work->window = i == 0 || window < work->window ? window : work->window;
    }
    if (status == MICA_OK && work->window < 2)
        status = mica_fail(error, MICA_USAGE, "context: expected windows of at least 2 tokens, got %llu", (unsigned long long)work->window);
    if (status == MICA_OK && count + (bos >= 0) < work->window)
        work->window = count + (bos >= 0);
    settings.context = work->window;
    if (work->count == 2) {
        uint64_t memory = settings.memory_bytes ? settings.memory_bytes : mica_memory_available_bytes() / 5 * 4;
        settings.memory_bytes = memory / 2 ? memory / 2 : 1;
    }
    for (uint32_t i = 0; i < work->count && status == MICA_OK; i++) {
        status = mica_compute_open_engine(&work->sides[i], &settings, ROWS, 0, error);
        if (status == MICA_USAGE && work->count == 2)
            tell_halves(error);
        settings.memory_bytes *= 2; /* the first has its half already */
    }
    if (status == MICA_OK)
        status = score_all(work, options, ids, count, bos, error);
    mica_free(ids);
    return status;
}

mica_status mica_perplexity(const char *checkpoint, const char *against, const mica_compute_options *options, const mica_prompt *prompt,
                            char **text, char **json, mica_error *error) {
    comparing work = {.count = against ? 2 : 1};
    mica_status status = mica_compute_open_model(checkpoint, &work.sides[0], error);
    if (status == MICA_OK && against)
        status = mica_compute_open_model(against, &work.sides[1], error);
    if (status == MICA_OK && against)
        status = check_pair(&work, error);
    if (status == MICA_OK)
        status = run(&work, options, prompt, error);
    if (status == MICA_OK)
        status = give_report(&work, checkpoint, against, options, text, json, error);
    for (uint32_t i = 0; i < work.count; i++)
        mica_compute_close(&work.sides[i]);
    return status;
}
