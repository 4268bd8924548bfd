/* model/chat.h: conversations as token ids, in the format that a model's chat template describes. The template is not run: it is
 * recognised by what stands in it, as one of a table's rows (chat.c); another one is refused. What people and models wrote is text: no
 * control token is taken from it. Judged by tests/model/test_chat.c and tests/interop/chat.py (the templates themselves, rendered by
 * jinja2). */
#ifndef MICA_MODEL_CHAT_H
#define MICA_MODEL_CHAT_H

#include "model/tokenizer.h"

typedef enum mica_chat_role { MICA_CHAT_SYSTEM, MICA_CHAT_USER, MICA_CHAT_ASSISTANT, MICA_CHAT_TOOL, MICA_CHAT_ROLE_COUNT } mica_chat_role;

typedef struct mica_chat_message {
    mica_chat_role role;
    const char *content;
    uint64_t length;
} mica_chat_message;

typedef struct mica_chat mica_chat; /* immutable; any thread */

/* `tokenizer` must outlive it. BAD_INPUT: there is no template, it is not one of those known, or the vocabulary lacks a token of the
 * format. */
mica_status mica_chat_open(const mica_tokenizer *tokenizer, mica_chat **chat, mica_error *error) MICA_CHECKED;
void mica_chat_close(mica_chat *chat); /* NULL is fine */

const char *mica_chat_format(const mica_chat *chat); /* "kimi", "chatml", …; static */
/* The token that ends a reply. */
uint32_t mica_chat_end(const mica_chat *chat);
/* What the format says when the first message is no system's; NULL: nothing. */
const char *mica_chat_default_system(const mica_chat *chat);

/* Appends the ids of a conversation, from its very start (with a bos where the format has one); with `reply`, up to where the model's
 * answer begins. What a model thought before its answer (up to </think>) is left out of its earlier messages where the format does so. */
mica_status mica_chat_render(const mica_chat *chat, const mica_chat_message *messages, uint64_t count, bool reply, mica_token_list *ids,
                             mica_error *error) MICA_CHECKED;

#endif
