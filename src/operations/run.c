/* operations/run.c: generating text: a prompt, then one token after the other, told as they come. What was computed is remembered, so that
 * a conversation goes on where it was. Judged by tests/operations/test_compute.c against tiny-k2's golden continuations. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/quantity.h"
#include "base/text.h"
#include "model/chat.h"
#include "model/sampler.h"
#include "operations/compute.h"

struct mica_runner {
    mica_compute compute;
    mica_sampler sampler;
    mica_token_stream stream;
    int64_t pending;  /* the last token said, not yet computed; -1: none */
    int64_t *history; /* [context]: ids of the positions that the engine remembers */
    mica_chat *chat;  /* from the first turn on */
    mica_chat_message *messages; /* owned, with their contents */
    uint64_t message_count;
    mica_text reply;
};

static void forget_messages(mica_runner *runner, uint64_t count) {
    while (runner->message_count > count)
        mica_free((char *)runner->messages[--runner->message_count].content);
}

mica_status mica_runner_open(const char *checkpoint, const mica_compute_options *options, mica_runner **result, mica_error *error) {
    mica_runner *runner = mica_calloc(1, sizeof *runner);
    if (!runner)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", checkpoint);
    runner->pending = -1;
    mica_status status = mica_compute_open_model(checkpoint, &runner->compute, error);
    if (status == MICA_OK)
        status = mica_sampler_init(&runner->sampler, runner->compute.model->config.vocab_size, error);
    if (status == MICA_OK)
        status = mica_compute_open_engine(&runner->compute, options, 1, 0, error);
    if (status == MICA_OK && !(runner->history = mica_calloc(mica_engine_context(runner->compute.engine), sizeof *runner->history)))
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", checkpoint);
    if (status == MICA_OK)
        *result = runner;
    else
        mica_runner_close(runner);
    return status;
}

void mica_runner_close(mica_runner *runner) {
    if (!runner)
        return;
    mica_runner_reset(runner);
    mica_text_release(&runner->reply);
    mica_chat_close(runner->chat);
    mica_free(runner->history);
    mica_token_stream_release(&runner->stream);
    mica_sampler_release(&runner->sampler);
    mica_compute_close(&runner->compute);
    mica_free(runner);
}

void mica_runner_reset(mica_runner *runner) {
    if (runner->compute.engine)
        mica_engine_rewind(runner->compute.engine, 0);
    runner->pending = -1;
    forget_messages(runner, 0);
    mica_free(runner->messages);
    runner->messages = NULL;
}

static bool ends_sequence(const mica_runner *runner, int64_t id) {
    const mica_config *config = &runner->compute.model->config;
    for (uint64_t i = 0; i < config->eos_token_count; i++)
        if (config->eos_token_ids[i] == id)
            return true;
    if (runner->chat && runner->message_count && (uint32_t)id == mica_chat_end(runner->chat))
        return true;
    return runner->compute.tokenizer && mica_tokenizer_ends(runner->compute.tokenizer, (uint32_t)id);
}

/* Tells a token: its text as far as it is whole characters, or without a tokenizer its number. False: enough. */
static mica_status say(mica_runner *runner, const mica_generate_options *options, int64_t id, bool *go_on, mica_error *error) {
    const char *bytes = "";
    uint64_t length = 0;
    char number[32];
    if (runner->compute.tokenizer) {
        mica_status status = mica_token_stream_push(&runner->stream, runner->compute.tokenizer, (uint32_t)id, &bytes, &length, error);
        if (status != MICA_OK)
            return status;
    } else {
        length = (uint64_t)snprintf(number, sizeof number, "%lld ", (long long)id);
        bytes = number;
    }
    mica_text_append(&runner->reply, bytes, length);
    *go_on = !options->say || options->say(options->say_context, bytes, length, id);
    return MICA_OK;
}

/* The prompt's ids with what is pending before them. */
static mica_status gather_prompt(mica_runner *runner, const mica_generate_options *options, int64_t **ids, uint64_t *count,
                                 mica_error *error) {
    const bool first = mica_engine_position(runner->compute.engine) == 0;
    mica_status status = mica_compute_ids(&runner->compute, &options->prompt, first, ids, count, error);
    if (status != MICA_OK || runner->pending < 0)
        return status;
    memmove(*ids + 1, *ids, *count * sizeof **ids); /* mica_compute_ids leaves room for one more */
    (*ids)[0] = runner->pending;
    ++*count;
    return MICA_OK;
}

/* ---- conversations: rendered whole each time; what the engine remembers of the same beginning stays */

static mica_status add_message(mica_runner *runner, mica_chat_role role, const char *text, mica_error *error) {
    mica_chat_message *messages = mica_reallocarray(runner->messages, runner->message_count + 1, sizeof *messages);
    char *copy = messages ? mica_strdup(text) : NULL;
    if (messages)
        runner->messages = messages;
    if (!copy)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the conversation");
    messages[runner->message_count++] = (mica_chat_message){role, copy, strlen(copy)};
    return MICA_OK;
}

mica_status mica_runner_chat(mica_runner *runner, mica_error *error) {
    const mica_compute *compute = &runner->compute;
    if (compute->tokenizer_error.status != MICA_OK)
        return mica_fail(error, compute->tokenizer_error.status, "%s", compute->tokenizer_error.message);
    if (!compute->tokenizer)
        return mica_fail(error, MICA_USAGE, "%s: a conversation: expected a tokenizer beside the model", compute->model->source->path);
    return runner->chat ? MICA_OK : mica_chat_open(compute->tokenizer, &runner->chat, error);
}

static mica_status add_turn(mica_runner *runner, const mica_generate_options *options, mica_error *error) {
    mica_status status = mica_runner_chat(runner, error);
    if (status == MICA_OK && !options->prompt.text)
        status = mica_fail(error, MICA_USAGE, "%s: a conversation: expected text, got ids", runner->compute.model->source->path);
    if (status == MICA_OK && runner->message_count == 0 && options->system)
        status = add_message(runner, MICA_CHAT_SYSTEM, options->system, error);
    return status == MICA_OK ? add_message(runner, MICA_CHAT_USER, options->prompt.text, error) : status;
}

/* The ids behind what is remembered, which is cut back to the beginning that both have. */
static mica_status gather_turn(mica_runner *runner, const mica_generate_options *options, int64_t **ids, uint64_t *count,
                               mica_error *error) {
    mica_token_list list = {0};
    mica_status status = add_turn(runner, options, error);
    if (status == MICA_OK)
        status = mica_chat_render(runner->chat, runner->messages, runner->message_count, true, &list, error);
    if (status == MICA_OK && list.failed)
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for the conversation");
    uint64_t same = 0, known = mica_engine_position(runner->compute.engine);
    while (same < known && same + 1 < list.count && runner->history[same] == (int64_t)list.ids[same])
        same++;
    if (status == MICA_OK && !(*ids = mica_reallocarray(NULL, list.count - same + 1, sizeof **ids)))
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for the conversation");
    if (status == MICA_OK) {
        for (uint64_t i = same; i < list.count; i++)
            (*ids)[i - same] = list.ids[i];
        *count = list.count - same;
        mica_engine_rewind(runner->compute.engine, same);
        runner->pending = -1;
    }
    mica_token_list_release(&list);
    return status;
}

typedef struct asking { /* between the batches of a prompt */
    const mica_generate_options *options;
} asking;

static bool go_on(void *context) {
    const mica_generate_options *options = ((asking *)context)->options;
    return !options->say || options->say(options->say_context, "", 0, -1);
}

static mica_status compute_prompt(mica_runner *runner, const mica_generate_options *options, mica_compute_meters *meters,
                                  mica_error *error) {
    int64_t *ids = NULL;
    uint64_t count = 0;
    mica_engine *engine = runner->compute.engine;
    mica_text_release(&runner->reply);
    mica_status status = options->chat ? gather_turn(runner, options, &ids, &count, error)
                                       : gather_prompt(runner, options, &ids, &count, error);
    if (status == MICA_OK && count == 0)
        status = mica_fail(error, MICA_USAGE, "expected a prompt of at least one token, got none");
    uint64_t room = mica_engine_context(engine) - mica_engine_position(engine);
    if (status == MICA_OK && count > room)
        status = mica_fail(error, MICA_BAD_INPUT, "expected at most %llu tokens in the context that is left (of %llu; --context), got %llu",
                           (unsigned long long)room, (unsigned long long)mica_engine_context(engine), (unsigned long long)count);
    double begin = mica_seconds_now();
    if (status == MICA_OK) {
        runner->pending = -1;
        memcpy(runner->history + mica_engine_position(engine), ids, count * sizeof *ids);
        status = mica_engine_prefill(engine, ids, count, go_on, &(asking){options}, error);
    }
    meters->prompt_tokens = count;
    meters->prompt_seconds = mica_seconds_now() - begin;
    mica_free(ids);
    return status;
}

static uint64_t last_row(const mica_runner *runner, uint64_t prompt_tokens) {
    uint64_t batch = mica_engine_batch(runner->compute.engine);
    return (prompt_tokens - 1) % batch;
}

static mica_status generate(mica_runner *runner, const mica_generate_options *options, mica_compute_meters *meters, mica_error *error) {
    mica_engine *engine = runner->compute.engine;
    const mica_sampling *given = &options->sampling;
    uint64_t row = last_row(runner, meters->prompt_tokens), limit = options->token_limit ? options->token_limit : UINT64_MAX;
    mica_sampler_set(&runner->sampler, &(mica_sampler_options){given->temperature, given->top_p, given->min_p, given->top_k, given->seed});
    double begin = mica_seconds_now();
    mica_status status = MICA_OK;
    for (bool more = true; more && status == MICA_OK && meters->generated_tokens < limit;) {
        if (runner->pending >= 0) {
            if (mica_engine_position(engine) == mica_engine_context(engine))
                break;
            runner->history[mica_engine_position(engine)] = runner->pending;
            status = mica_engine_step(engine, &runner->pending, 1, error);
            meters->decoded_tokens += status == MICA_OK;
            row = 0;
        }
        if (status == MICA_OK)
            status = mica_engine_logits(engine, row, 1, runner->compute.logits, error);
        if (status != MICA_OK)
            break;
        runner->pending = mica_sampler_next(&runner->sampler, runner->compute.logits);
        if (meters->generated_tokens++ == 0) { /* the prompt's last logits */
            meters->prompt_seconds += mica_seconds_now() - begin;
            begin = mica_seconds_now();
        }
        if (!options->ignore_end && ends_sequence(runner, runner->pending))
            break;
        status = say(runner, options, runner->pending, &more, error);
    }
    meters->generated_seconds = mica_seconds_now() - begin;
    return status;
}

/* What one token reads: every resident matrix but the embedding, and its experts. */
static uint64_t bytes_of_a_token(const mica_runner *runner, const mica_engine_meters *engine) {
    uint64_t bytes = engine->resident_read;
    const mica_model *model = runner->compute.model;
    for (uint64_t i = 0; i < model->config.num_hidden_layers; i++)
        for (int p = 0; model->layers[i].moe && p < MICA_PROJECTION_COUNT; p++) {
            const mica_weight *weight = model->layers[i].experts[p];
            bytes += model->config.num_experts_per_tok * (weight->data->bytes + (weight->scale ? weight->scale->bytes : 0));
        }
    return bytes;
}

mica_status mica_runner_generate(mica_runner *runner, const mica_generate_options *options, mica_compute_meters *meters,
                                 mica_error *error) {
    mica_compute_meters own = {0};
    const char *bytes;
    uint64_t length, messages = runner->message_count;
    mica_token_stream_flush(&runner->stream, &bytes, &length); /* what an earlier stop left */
    mica_status status = compute_prompt(runner, options, &own, error);
    mica_engine_meters before = mica_engine_meters_get(runner->compute.engine);
    if (status == MICA_OK)
        status = generate(runner, options, &own, error);
    mica_token_stream_flush(&runner->stream, &bytes, &length);
    mica_text_append(&runner->reply, bytes, length);
    if (status == MICA_OK && length && options->say)
        options->say(options->say_context, bytes, length, -1);
    if (status == MICA_OK && options->chat)
        status = mica_text_failed(&runner->reply)
                     ? mica_fail(error, MICA_NO_MEMORY, "out of memory for the reply")
                     : add_message(runner, MICA_CHAT_ASSISTANT, runner->reply.bytes ? runner->reply.bytes : "", error);
    if (status != MICA_OK && options->chat)
        forget_messages(runner, messages);
    mica_engine_meters after = mica_engine_meters_get(runner->compute.engine);
    own.opening_seconds = runner->compute.opening_seconds;
    own.resident_bytes = after.resident_bytes;
    own.resident_read = after.resident_read;
    own.resident_seconds = after.resident_seconds;
    own.expert_uses = after.experts.uses - before.experts.uses;
    own.expert_hits = after.experts.hits - before.experts.hits;
    own.bytes_read = after.experts.bytes_read - before.experts.bytes_read;
    own.stalled_seconds = after.experts.seconds_stalled - before.experts.seconds_stalled;
    own.weight_bytes = bytes_of_a_token(runner, &after);
    own.peak_bytes = mica_memory_peak_bytes();
    own.slots = after.slots;
    own.experts = after.expert_count;
    own.working_set = after.working_set;
    if (meters)
        *meters = own;
    return status;
}

char *mica_meters_show(const mica_compute_meters *meters) {
    mica_text line = MICA_TEXT_INIT;
    char read[MICA_QUANTITY_BYTES], peak[MICA_QUANTITY_BYTES];
    const uint64_t decoded = meters->decoded_tokens;
    const double seconds = meters->generated_seconds, rate = seconds > 0 ? (double)decoded / seconds : 0;
    mica_text_printf(&line, "prefill %llu tokens, %.1f tok/s; decode %llu tokens", (unsigned long long)meters->prompt_tokens,
                     meters->prompt_seconds > 0 ? (double)meters->prompt_tokens / meters->prompt_seconds : 0,
                     (unsigned long long)decoded);
    if (decoded)
        mica_text_printf(&line, ", %.2f tok/s", rate);
    if (meters->experts && meters->expert_uses)
        mica_text_printf(&line, ", %.1f%% of experts in memory, %s read a token",
                         100 * (double)meters->expert_hits / (double)meters->expert_uses,
                         mica_bytes_show(decoded ? meters->bytes_read / decoded : 0, read));
    if (decoded)
        mica_text_printf(&line, ", %.2f GB/s of weights", (double)meters->weight_bytes * rate / 1e9);
    mica_text_printf(&line, "; peak %s", mica_bytes_show(meters->peak_bytes, peak));
    if (meters->slots < meters->working_set)
        mica_text_printf(&line, "; the budget holds %llu experts, one token uses %llu: most are read again for every token",
                         (unsigned long long)meters->slots, (unsigned long long)meters->working_set);
    return mica_text_take(&line);
}
