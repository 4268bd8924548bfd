/* tests/interop/render_chats.c: render_chats CHECKPOINT: conversations from the standard input to ids on the standard output. In: the
 * number of messages (4 bytes, little-endian); of each its role (a byte, of mica_chat_role), its length (4 bytes) and its text. Out: the
 * name of the format and a newline first, then for each conversation the count and the ids (4 bytes each). Exit status 3, and the
 * sentence, where there is no format. */
#include <mica/tokenizer.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/chat.h"

static int fail(const char *what, int status) {
    fprintf(stderr, "%s\n", what);
    return status;
}

static uint32_t read_number(size_t bytes) {
    uint32_t number = 0;
    if (fread(&number, bytes, 1, stdin) != 1)
        exit(fail("the input ends too early", 1));
    return number;
}

static int one(const mica_chat *chat, uint32_t count, mica_error *error) {
    mica_chat_message messages[16];
    mica_token_list ids = {0};
    for (uint32_t i = 0; i < count && i < 16; i++) {
        messages[i].role = (mica_chat_role)read_number(1);
        messages[i].length = read_number(4);
        char *text = malloc(messages[i].length + 1);
        if (!text || fread(text, 1, messages[i].length, stdin) != messages[i].length)
            return fail("the input ends too early", 1);
        messages[i].content = text;
    }
    if (count > 16 || mica_chat_render(chat, messages, count, true, &ids, error) != MICA_OK)
        return fail(count > 16 ? "too many messages" : error->message, 1);
    uint32_t id_count = (uint32_t)ids.count;
    fwrite(&id_count, sizeof id_count, 1, stdout);
    fwrite(ids.ids, sizeof *ids.ids, ids.count, stdout);
    mica_token_list_release(&ids);
    for (uint32_t i = 0; i < count; i++)
        free((void *)messages[i].content);
    return 0;
}

int main(int count, char **arguments) {
    mica_tokenizer *tokenizer;
    mica_chat *chat;
    mica_error error;
    if (count != 2 || mica_tokenizer_open(arguments[1], &tokenizer, &error) != MICA_OK)
        return fail(count != 2 ? "expected a checkpoint" : error.message, 1);
    if (mica_chat_open(tokenizer, &chat, &error) != MICA_OK)
        return fail(error.message, 3);
    printf("%s\n", mica_chat_format(chat));
    int status = 0;
    uint32_t messages;
    while (status == 0 && fread(&messages, sizeof messages, 1, stdin) == 1)
        status = one(chat, messages, &error);
    mica_chat_close(chat);
    mica_tokenizer_close(tokenizer);
    return status;
}
