/* operations/export_gguf_tokenizer.c: tokenizer.ggml.*: tokens, their types, merges or scores, the pre-tokenizer's name, special ids, the chat
 * template. A checkpoint without tokenizer files is written without these keys, and a tokenizer that GGUF has no name for is refused.
 * Judged by tests/operations/test_export_gguf.c and tests/interop/export_gguf.py. */
#include "model/tokenizer.h"
#include "operations/export_gguf.h"
#include "operations/export_rules.h"

static mica_status note(const mica_tokenizer *tokenizer, mica_export_rules *rules, mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    mica_text_puts(&text, "the tokenizer is not quite the checkpoint's");
    const size_t begin = text.length;
    mica_status status = mica_tokenizer_gguf_note(tokenizer, &text, error);
    if (status == MICA_OK && mica_text_failed(&text))
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for a note on the tokenizer");
    if (status == MICA_OK && text.length > begin) {
        text.bytes[begin] = ':';
        status = mica_export_rules_note(rules, error, text.bytes);
    }
    mica_text_release(&text);
    return status;
}

mica_status mica_export_tokenizer(const mica_export_plan *plan, mica_export_rules *rules, mica_gguf_metadata *out, mica_error *error) {
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
    if (status == MICA_OK && mica_tokenizer_count(tokenizer) != model->config.vocab_size)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected %llu tokens (vocab_size), got %u from its tokenizer", model->source->path,
                           (unsigned long long)model->config.vocab_size, mica_tokenizer_count(tokenizer));
    if (status == MICA_OK)
        status = mica_tokenizer_add_to_gguf(tokenizer, out, error);
    if (status == MICA_OK)
        status = note(tokenizer, rules, error);
    mica_tokenizer_close(tokenizer);
    return status;
}
