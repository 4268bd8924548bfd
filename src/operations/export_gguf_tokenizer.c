/* operations/export_gguf_tokenizer.c: tokenizer.ggml.*: tokens, their types, merges, the pre-tokenizer's name, special ids, the chat template.
 * A checkpoint without tokenizer files is written without these keys, and a tokenizer that GGUF has no name for is refused.
 * Judged by tests/operations/test_export_gguf.c and tests/interop/export_gguf.py. */
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "model/tokenizer.h"
#include "operations/export_gguf.h"

static mica_status put_tokens(const mica_tokenizer *tokenizer, mica_gguf_metadata *out, mica_error *error) {
    const uint32_t count = mica_tokenizer_count(tokenizer);
    int32_t *types = mica_calloc(count + 1, sizeof *types);
    mica_text text = MICA_TEXT_INIT;
    if (!types)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the types of %u tokens", count);
    mica_gguf_add_strings(out, "tokenizer.ggml.tokens", count);
    for (uint32_t id = 0; id < count; id++) {
        mica_text_clear(&text);
        mica_tokenizer_gguf_text(tokenizer, id, &text);
        mica_gguf_add_element(out, text.bytes, text.length);
        types[id] = (int32_t)mica_tokenizer_type(tokenizer, id);
    }
    mica_gguf_add_array(out, "tokenizer.ggml.token_type", MICA_GGUF_INT32, types, count);
    const bool failed = mica_text_failed(&text);
    mica_text_release(&text);
    mica_free(types);
    return failed ? mica_fail(error, MICA_NO_MEMORY, "out of memory for the names of %u tokens", count) : MICA_OK;
}

static mica_status put_merges(const mica_tokenizer *tokenizer, mica_gguf_metadata *out, mica_error *error) {
    mica_token_merge *merges = NULL;
    uint64_t count = 0;
    const mica_status status = mica_tokenizer_merges(tokenizer, &merges, &count, error);
    if (status != MICA_OK)
        return status;
    mica_text text = MICA_TEXT_INIT;
    mica_gguf_add_strings(out, "tokenizer.ggml.merges", count);
    for (uint64_t i = 0; i < count; i++) {
        mica_text_clear(&text);
        mica_tokenizer_gguf_text(tokenizer, merges[i].left, &text);
        mica_text_puts(&text, " ");
        mica_tokenizer_gguf_text(tokenizer, merges[i].right, &text);
        mica_gguf_add_element(out, text.bytes, text.length);
    }
    const bool failed = mica_text_failed(&text);
    mica_text_release(&text);
    mica_free(merges);
    return failed ? mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu merges", (unsigned long long)count) : MICA_OK;
}

static void put_roles(const mica_tokenizer *tokenizer, mica_gguf_metadata *out) {
    const mica_token_roles *roles = mica_tokenizer_roles(tokenizer);
    const struct {
        const char *key;
        uint32_t id;
    } rows[] = {{"tokenizer.ggml.bos_token_id", roles->bos},
                {"tokenizer.ggml.eos_token_id", roles->eos},
                {"tokenizer.ggml.unknown_token_id", roles->unknown},
                {"tokenizer.ggml.padding_token_id", roles->padding}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].id != MICA_TOKEN_NONE)
            mica_gguf_add_u32(out, rows[i].key, rows[i].id);
    mica_gguf_add_bool(out, "tokenizer.ggml.add_bos_token", roles->add_bos);
    if (roles->add_eos)
        mica_gguf_add_bool(out, "tokenizer.ggml.add_eos_token", true);
    if (mica_tokenizer_chat_template(tokenizer))
        mica_gguf_add_string(out, "tokenizer.chat_template", mica_tokenizer_chat_template(tokenizer));
}

mica_status mica_export_tokenizer(const mica_export_plan *plan, mica_gguf_metadata *out, mica_error *error) {
    const mica_model *model = plan->model;
    const mica_token_files files = {.source = model->source};
    mica_tokenizer *tokenizer = NULL;
    if (plan->vision_blocks)
        return MICA_OK;
    if (!mica_token_files_exist(&files)) {
        mica_gguf_add_string(out, "tokenizer.ggml.model", "none");
        return MICA_OK;
    }
    mica_status status = mica_tokenizer_open_source(model->source, &tokenizer, error);
    const char *pre = status == MICA_OK ? mica_tokenizer_pre_type(tokenizer) : NULL;
    if (status == MICA_OK && !pre)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: its tokenizer splits text in a way that GGUF has no name for", model->source->path);
    if (status == MICA_OK && mica_tokenizer_count(tokenizer) != model->config.vocab_size)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected %llu tokens (vocab_size), got %u from its tokenizer", model->source->path,
                           (unsigned long long)model->config.vocab_size, mica_tokenizer_count(tokenizer));
    if (status == MICA_OK) {
        mica_gguf_add_string(out, "tokenizer.ggml.model", "gpt2");
        mica_gguf_add_string(out, "tokenizer.ggml.pre", pre);
        status = put_tokens(tokenizer, out, error);
    }
    if (status == MICA_OK)
        status = put_merges(tokenizer, out, error);
    if (status == MICA_OK)
        put_roles(tokenizer, out);
    mica_tokenizer_close(tokenizer);
    return status;
}
