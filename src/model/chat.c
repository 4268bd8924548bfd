/* model/chat.c: see the header. A row says what stands around the messages, and by which literals its template is known: they are looked
 * for in the template's normal form, in which ways of writing that mean the same are the same. Text between two special tokens is
 * encoded as a whole, the format's and the people's together, as it is where a template is run. */
#include "model/chat.h"

#include <inttypes.h>
#include <string.h>

#include "base/memory.h"
#include "model/tokenizer_build.h"

#define BOS "\x01" /* in a row: the tokenizer's own tokens */
#define EOS "\x02"
#define MARKS_MAX 4

typedef struct chat_row {
    const char *name;
    const char *marks[MARKS_MAX]; /* all of them are in the template's normal form */
    const char *start;            /* before everything */
    struct {
        const char *before, *after; /* before NULL: the format has no such role */
    } roles[MICA_CHAT_ROLE_COUNT];
    const char *reply;     /* behind the last message, before an answer */
    const char *end;       /* the token that ends one */
    const char *tokens[4]; /* control tokens that the vocabulary must have; ended by NULL */
    bool system_first;     /* all of the system's messages are one, at the start, joined by empty lines */
} chat_row;

/* clang-format off */
#define KIMI_SYSTEM "<|im_system|>system<|im_middle|>"
#define KIMI_USER "<|im_user|>user<|im_middle|>"
#define KIMI_ASSISTANT "<|im_assistant|>assistant<|im_middle|>"
#define KIMI_TOOL "<|im_system|>tool<|im_middle|>"
#define KIMI_END "<|im_end|>"
#define KIMI_ROLES(thought) \
    {{KIMI_SYSTEM, KIMI_END}, {KIMI_USER, KIMI_END}, {KIMI_ASSISTANT thought, KIMI_END}, {KIMI_TOOL, KIMI_END}}
#define KIMI_TOKENS {"<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>"}

#define CHATML(role) {"<|im_start|>" role "\n", "<|im_end|>\n"}
#define CHATML_ROLES {CHATML("system"), CHATML("user"), CHATML("assistant"), {NULL, NULL}}
#define CHATML_REPLY "<|im_start|>assistant\n"
#define CHATML_TOKENS {"<|im_start|>", NULL}

#define DEEPSEEK_USER "<｜User｜>"
#define DEEPSEEK_ASSISTANT "<｜Assistant｜>"
#define DEEPSEEK_END "<｜end▁of▁sentence｜>"
#define DEEPSEEK_MARK "{{'" DEEPSEEK_USER "'+message['content']}}"
#define DEEPSEEK_ROLES(thought) {{"", ""}, {DEEPSEEK_USER, ""}, {DEEPSEEK_ASSISTANT thought, DEEPSEEK_END}, {NULL, NULL}}
#define DEEPSEEK_TOKENS {DEEPSEEK_USER, DEEPSEEK_ASSISTANT, NULL}

/* The first row that fits counts: the more special ones are first. */
static const chat_row rows[] = {
    {"kimi-thinking", {"<|im_user|>{{role_name}}<|im_middle|>", KIMI_ASSISTANT, "<think></think>{{render_content(message)}}"}, "",
     KIMI_ROLES("<think></think>"), KIMI_ASSISTANT, KIMI_END, KIMI_TOKENS, false},
    {"kimi", {"<|im_user|>{{role_name}}<|im_middle|>", KIMI_ASSISTANT}, "", KIMI_ROLES(""), KIMI_ASSISTANT, KIMI_END, KIMI_TOKENS, false},
    {"kimi", {KIMI_SYSTEM, KIMI_USER, KIMI_ASSISTANT}, "", KIMI_ROLES(""), KIMI_ASSISTANT, KIMI_END, KIMI_TOKENS, false},
    {"chatml", {"'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'+'\n'", "'" CHATML_REPLY "'"}, "", CHATML_ROLES,
     CHATML_REPLY, "<|im_end|>", CHATML_TOKENS, false},
    {"chatml", {"'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>\n'", "'" CHATML_REPLY "'"}, "", CHATML_ROLES,
     CHATML_REPLY, "<|im_end|>", CHATML_TOKENS, false},
    {"deepseek-v3.1", {DEEPSEEK_MARK, "'" DEEPSEEK_ASSISTANT "'", "{{'<think></think>'}}", "ns.is_last_user"}, BOS,
     DEEPSEEK_ROLES("<think></think>"), DEEPSEEK_ASSISTANT "<think></think>", DEEPSEEK_END, DEEPSEEK_TOKENS, true},
    {"deepseek-v3.1", {DEEPSEEK_MARK, "'" DEEPSEEK_ASSISTANT "'", "{{'</think>'}}", "ns.is_last_user"}, BOS, DEEPSEEK_ROLES("</think>"),
     DEEPSEEK_ASSISTANT "</think>", DEEPSEEK_END, DEEPSEEK_TOKENS, true},
    {"deepseek-r1", {DEEPSEEK_MARK, "{{'" DEEPSEEK_ASSISTANT "'+content+'" DEEPSEEK_END "'}}", "'" DEEPSEEK_ASSISTANT "<think>\n'",
     "{%ifnotenable_thinking%}{{'</think>'}}"}, BOS, DEEPSEEK_ROLES(""), DEEPSEEK_ASSISTANT "<think>\n</think>", DEEPSEEK_END,
     DEEPSEEK_TOKENS, true},
    {"deepseek-r1", {DEEPSEEK_MARK, "{{'" DEEPSEEK_ASSISTANT "'+content+'" DEEPSEEK_END "'}}", "'" DEEPSEEK_ASSISTANT "<think>\n'"}, BOS,
     DEEPSEEK_ROLES(""), DEEPSEEK_ASSISTANT "<think>\n", DEEPSEEK_END, DEEPSEEK_TOKENS, true},
    {"deepseek-v3", {DEEPSEEK_MARK, "{{'" DEEPSEEK_ASSISTANT "'+content+'" DEEPSEEK_END "'}}", "{{'" DEEPSEEK_ASSISTANT "'}}"}, BOS,
     DEEPSEEK_ROLES(""), DEEPSEEK_ASSISTANT, DEEPSEEK_END, DEEPSEEK_TOKENS, true},
    {"deepseek-v2", {"{{bos_token}}", "{{'User: '+message['content']+'\n\n'}}", "{{'Assistant: '+message['content']+eos_token}}",
     "{{'Assistant:'}}"}, BOS, {{"", "\n\n"}, {"User: ", "\n\n"}, {"Assistant: ", EOS}, {NULL, NULL}}, "Assistant:", EOS, {NULL}, false},
};

/* clang-format on */

struct mica_chat {
    const mica_tokenizer *tokenizer;
    const chat_row *row;
    char *default_system;      /* NULL: none */
    const char *default_after; /* behind it, and behind the end of its turn */
    const char *thought_end;   /* what of the assistant's messages is left out ends here; NULL: nothing is */
    bool thought_first;        /* at the first of them, not the last */
    bool trim_answer;          /* newlines before the answer are left out as well */
    uint32_t end;
};

/* ---- a template's normal form */

/* Inside {{ }} and {% %}: no white space outside of strings, strings in single quotes with their escapes resolved; outside of blocks as
 * it is. */
static void normalise(const char *text, mica_text *normal) {
    bool block = false;
    char quote = 0;
    for (const char *at = text; *at; at++) {
        char byte = *at;
        if (quote && byte == '\\' && at[1]) {
            at++;
            byte = *at == 'n' ? '\n' : *at == 't' ? '\t' : *at;
        } else if (quote && byte == quote) {
            quote = 0;
            byte = '\'';
        } else if (!quote && block && (byte == '\'' || byte == '"')) {
            quote = byte;
            byte = '\'';
        } else if (!quote && block && memchr(" \t\r\n-", byte, 5)) { /* {%- and -%}: what they do matters to white space alone */
            continue;
        } else if (!quote && !block && byte == '{' && (at[1] == '{' || at[1] == '%')) {
            block = true;
            mica_text_append(normal, at++, 2);
            continue;
        } else if (!quote && block && (byte == '}' || byte == '%') && at[1] == '}') {
            block = false;
            mica_text_append(normal, at++, 2);
            continue;
        }
        mica_text_append(normal, &byte, 1);
    }
}

static void replace_all(mica_text *text, const char *from, const char *to) {
    mica_text result = MICA_TEXT_INIT;
    const char *at = text->bytes, *found;
    for (; (found = strstr(at, from)); at = found + strlen(from)) {
        mica_text_append(&result, at, (size_t)(found - at));
        mica_text_puts(&result, to);
    }
    mica_text_puts(&result, at);
    mica_text_release(text);
    *text = result;
}

/* And message.role written message['role']. Failed when memory ran out. */
static mica_text normal_form(const char *text) {
    mica_text normal = MICA_TEXT_INIT;
    mica_text_puts(&normal, ""); /* so that there are bytes */
    normalise(text, &normal);
    if (!mica_text_failed(&normal))
        replace_all(&normal, "message.role", "message['role']");
    if (!mica_text_failed(&normal))
        replace_all(&normal, "message.content", "message['content']");
    return normal;
}

static const chat_row *find_row(const char *normal) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bool fits = true;
        for (int mark = 0; mark < MARKS_MAX && rows[i].marks[mark]; mark++)
            fits = fits && strstr(normal, rows[i].marks[mark]);
        if (fits)
            return &rows[i];
    }
    return NULL;
}

/* One of Kimi's templates leaves a newline behind its default: between the literal and a block that trims nothing before it. */
static const char *find_gap(const char *template, const mica_chat *chat) {
    const char *at = strstr(template, chat->default_system);
    if (!at)
        return "";
    at += strlen(chat->default_system);
    if (strncmp(at, chat->row->end, strlen(chat->row->end)) != 0)
        return "";
    at += strlen(chat->row->end);
    size_t indent = strspn(at, " \t\n");
    return *at == '\n' && strncmp(at + indent, "{%", 2) == 0 && at[indent + 2] != '-' ? "\n" : "";
}

/* Literal text between the system's marks: what the template says by itself. */
static mica_status find_default_system(const char *normal, mica_chat *chat, mica_error *error) {
    const char *before = chat->row->roles[MICA_CHAT_SYSTEM].before, *end = chat->row->end;
    if (!*before)
        return MICA_OK;
    for (const char *at = strstr(normal, before); at; at = strstr(at + 1, before)) {
        const char *text = at + strlen(before);
        size_t length = strcspn(text, "'{}");
        const char *stop = strstr(text, end);
        if (stop && stop > text && (size_t)(stop - text) <= length) {
            chat->default_system = mica_strndup(text, (size_t)(stop - text));
            return chat->default_system ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for a chat format");
        }
    }
    return MICA_OK;
}

static void find_thought(const char *normal, mica_chat *chat) {
    static const char end[] = "</think>";
    if (strstr(normal, "split('</think>')[1]") || strstr(normal, "split('</think>',1)[1]") || strcmp(chat->row->name, "kimi-thinking") == 0)
        chat->thought_end = end; /* the minus of [-1] is not in the normal form */
    chat->thought_first = strstr(normal, "split('</think>',1)[1]") != NULL;
    chat->trim_answer = strstr(normal, "split('</think>')[1].lstrip('\n')") != NULL;
}

/* ---- opening */

static mica_status check_tokens(const mica_chat *chat, mica_error *error) {
    for (int i = 0; i < 4 && chat->row->tokens[i]; i++) {
        if (mica_tokenizer_special(chat->tokenizer, chat->row->tokens[i]) == MICA_TOKEN_NONE) {
            return mica_fail(error, MICA_BAD_INPUT,
                             "%s: chat template: the format %s needs the token %s, which the vocabulary does not have",
                             chat->tokenizer->name, chat->row->name, chat->row->tokens[i]);
        }
    }
    if (chat->end == MICA_TOKEN_NONE) {
        return mica_fail(error, MICA_BAD_INPUT,
                         "%s: chat template: the format %s needs a token that ends a reply (%s), which the vocabulary does not have",
                         chat->tokenizer->name, chat->row->name, *chat->row->end == *EOS ? "eos" : chat->row->end);
    }
    return MICA_OK;
}

mica_status mica_chat_open(const mica_tokenizer *tokenizer, mica_chat **chat, mica_error *error) {
    if (!tokenizer->chat_template)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a chat template beside it, got none", tokenizer->name);
    mica_text normal = normal_form(tokenizer->chat_template);
    mica_chat *made = mica_calloc(1, sizeof *made);
    mica_status status = MICA_OK;
    if (mica_text_failed(&normal) || !made)
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the chat template", tokenizer->name);
    if (status == MICA_OK) {
        made->tokenizer = tokenizer;
        made->row = find_row(normal.bytes);
        if (!made->row) {
            status = mica_fail(error, MICA_BAD_INPUT,
                               "%s: expected a chat template of Kimi's, DeepSeek's or ChatML's, got another: it cannot be rendered",
                               tokenizer->name);
        }
    }
    if (status == MICA_OK) {
        made->end = *made->row->end == *EOS ? tokenizer->roles.eos : mica_tokenizer_special(tokenizer, made->row->end);
        find_thought(normal.bytes, made);
        status = find_default_system(normal.bytes, made, error);
        made->default_after = made->default_system ? find_gap(tokenizer->chat_template, made) : "";
    }
    if (status == MICA_OK)
        status = check_tokens(made, error);
    mica_text_release(&normal);
    if (status == MICA_OK)
        *chat = made;
    else
        mica_chat_close(made);
    return status;
}

void mica_chat_close(mica_chat *chat) {
    if (chat)
        mica_free(chat->default_system);
    mica_free(chat);
}

const char *mica_chat_format(const mica_chat *chat) {
    return chat->row->name;
}

uint32_t mica_chat_end(const mica_chat *chat) {
    return chat->end;
}

const char *mica_chat_default_system(const mica_chat *chat) {
    return chat->default_system;
}

/* ---- rendering */

typedef struct renderer {
    const mica_chat *chat;
    mica_text run; /* text since the last control token */
    mica_token_list *ids;
    mica_error *error;
} renderer;

static mica_status flush(renderer *out) {
    const mica_tokenizer *tokenizer = out->chat->tokenizer;
    mica_status status = MICA_OK;
    if (mica_text_failed(&out->run))
        status = mica_fail(out->error, MICA_NO_MEMORY, "%s: out of memory for a conversation", tokenizer->name);
    else if (out->run.length > 0)
        status = mica_tokenizer_append_behind(tokenizer, out->run.bytes, out->run.length, out->ids, out->error);
    mica_text_clear(&out->run);
    return status;
}

static mica_status add_token(renderer *out, uint32_t id) {
    mica_status status = flush(out);
    if (status == MICA_OK && id != MICA_TOKEN_NONE)
        mica_token_list_add(out->ids, id);
    return status;
}

/* The format's own text: control tokens in it are meant. */
static mica_status add_literal(renderer *out, const char *text) {
    const mica_tokenizer *tokenizer = out->chat->tokenizer;
    mica_status status = MICA_OK;
    for (uint64_t length = strlen(text); length > 0 && status == MICA_OK;) {
        uint64_t taken = 1;
        uint32_t id = mica_tokenizer_special_at(tokenizer, text, length, true);
        if (*text == *BOS || *text == *EOS)
            status = add_token(out, *text == *BOS ? tokenizer->roles.bos : tokenizer->roles.eos);
        else if (id != MICA_TOKEN_NONE)
            status = add_token(out, id);
        else
            mica_text_append(&out->run, text, 1);
        if (id != MICA_TOKEN_NONE)
            taken = tokenizer->spans[id].length;
        text += taken;
        length -= taken;
    }
    return status;
}

/* Where the last, or first, </think> in it ends; NULL: there is none. */
static const char *behind_thought(const mica_chat *chat, const mica_chat_message *message) {
    size_t mark = chat->thought_end ? strlen(chat->thought_end) : 0;
    const char *found = NULL;
    for (uint64_t at = 0; mark > 0 && at + mark <= message->length && !(found && chat->thought_first); at++) {
        if (memcmp(message->content + at, chat->thought_end, mark) == 0)
            found = message->content + at + mark;
    }
    return found;
}

static void add_content(renderer *out, const mica_chat_message *message) {
    const char *content = message->content, *end = content + message->length;
    const char *answer = message->role == MICA_CHAT_ASSISTANT ? behind_thought(out->chat, message) : NULL;
    if (answer)
        content = answer;
    while (answer && out->chat->trim_answer && content < end && *content == '\n')
        content++;
    mica_text_append(&out->run, content, (size_t)(end - content));
}

static mica_status add_message(renderer *out, const mica_chat_message *message) {
    const chat_row *row = out->chat->row;
    if (message->role >= MICA_CHAT_ROLE_COUNT || !row->roles[message->role].before)
        return mica_fail(out->error, MICA_BAD_INPUT, "the chat format %s has no such role as a message's", row->name);
    mica_status status = add_literal(out, row->roles[message->role].before);
    add_content(out, message);
    return status == MICA_OK ? add_literal(out, row->roles[message->role].after) : status;
}

static mica_status add_messages(renderer *out, const mica_chat_message *messages, uint64_t count) {
    const mica_chat *chat = out->chat;
    bool system_first = chat->row->system_first, some = false;
    mica_status status = MICA_OK;
    if (chat->default_system && (count == 0 || messages[0].role != MICA_CHAT_SYSTEM)) {
        const mica_chat_message system = {MICA_CHAT_SYSTEM, chat->default_system, strlen(chat->default_system)};
        status = add_message(out, &system);
        mica_text_puts(&out->run, chat->default_after);
    }
    for (uint64_t i = 0; i < count && system_first; i++) {
        if (messages[i].role == MICA_CHAT_SYSTEM) {
            mica_text_puts(&out->run, some ? "\n\n" : "");
            mica_text_append(&out->run, messages[i].content, messages[i].length);
            some = true;
        }
    }
    for (uint64_t i = 0; i < count && status == MICA_OK; i++) {
        if (!system_first || messages[i].role != MICA_CHAT_SYSTEM)
            status = add_message(out, &messages[i]);
    }
    return status;
}

mica_status mica_chat_render(const mica_chat *chat, const mica_chat_message *messages, uint64_t count, bool reply, mica_token_list *ids,
                             mica_error *error) {
    renderer out = {chat, MICA_TEXT_INIT, ids, error};
    mica_status status = add_literal(&out, chat->row->start);
    if (status == MICA_OK)
        status = add_messages(&out, messages, count);
    if (status == MICA_OK && reply)
        status = add_literal(&out, chat->row->reply);
    if (status == MICA_OK)
        status = flush(&out);
    if (status == MICA_OK && ids->failed)
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a conversation", chat->tokenizer->name);
    mica_text_release(&out.run);
    return status;
}
