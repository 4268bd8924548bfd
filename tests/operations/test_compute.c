/* test_compute.c: run, logits and perplexity on tiny-k2 against its golden values: greedy continuations, logits files, NLL; conversations
 * that go on, stops, refusals, failing writes. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <mica/engine.h>
#include <mica/imatrix.h>

#include "formats/gguf_write.h"
#include "model/chat.h"
#include "model/golden.h"
#include "model/model.h"
#include "operations/validate.h"

#define PROMPT "3840,367,450,267,597,2439,300" /* of seven tokens */

static char directory[256];

static int make(void **state) {
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/mica-test-XXXXXX", parent ? parent : P_tmpdir);
    return mkdtemp(directory) ? 0 : -1;
}

static int clean(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

static void expect(mica_status got, const mica_error *error, mica_status status, const char *part) {
    assert_int_equal(got, status);
    if (!strstr(error->message, part))
        fail_msg("expected \"...%s...\", got \"%s\"", part, error->message);
}

typedef struct told {
    char text[4096];
    uint64_t length, tokens, stop_after;
    int64_t ids[256];
} told;

static bool tell(void *context, const char *bytes, uint64_t length, int64_t id) {
    told *to = context;
    memcpy(to->text + to->length, bytes, length);
    to->length += length;
    if (id >= 0)
        to->ids[to->tokens++] = id;
    return to->stop_after == 0 || to->tokens < to->stop_after;
}

static mica_runner *open_runner(const mica_compute_options *options) {
    mica_runner *runner;
    mica_error error;
    if (mica_runner_open(TINY_K2, options, &runner, &error) != MICA_OK)
        fail_msg("%s", error.message);
    return runner;
}

static void test_greedy(void **state) {
    (void)state;
    json_t *golden = golden_open(TINY_K2 "/golden/golden.json"), *one;
    mica_runner *runner = open_runner(&(mica_compute_options){.threads = 2});
    size_t index;
    assert_true(json_array_size(json_object_get(golden, "greedy")) > 0);
    json_array_foreach(json_object_get(golden, "greedy"), index, one) {
        int64_t *ids;
        uint64_t count = golden_ids(one, &ids);
        const char *prompt = json_string_value(json_object_get(one, "prompt"));
        mica_compute_meters meters;
        mica_error error;
        told got = {0};
        mica_generate_options options = {.prompt = {.text = prompt, .bos = true}, .token_limit = 20, .say = tell, .say_context = &got};
        mica_runner_reset(runner);
        if (mica_runner_generate(runner, &options, &meters, &error) != MICA_OK)
            fail_msg("%s", error.message);
        assert_int_equal(meters.generated_tokens, 20);
        assert_int_equal(meters.prompt_tokens + 20, count);
        assert_memory_equal(got.ids, ids + meters.prompt_tokens, 20 * sizeof *ids);
        assert_string_equal(got.text, json_string_value(json_object_get(one, "text")) + strlen(prompt));
        assert_true(meters.peak_bytes > 0 && meters.weight_bytes > 0);
        char *line = mica_meters_show(&meters);
        assert_int_equal(meters.decoded_tokens, 19); /* the first comes of the prompt */
        assert_int_equal(meters.expert_uses, 4 * 4 * 19);
        assert_non_null(strstr(line, "decode 19 tokens"));
        mica_string_free(line);
        free(ids);
    }
    mica_runner_close(runner);
    json_decref(golden);
}

/* Draws that hang on every logit: a context that is another one is soon another text. */
static const mica_sampling drawn = {.temperature = 1.3, .seed = 11};

/* The same sequence in pieces, with a stop between: what was said is remembered. */
static void test_goes_on(void **state) {
    (void)state;
    mica_error error;
    told whole = {0}, pieces = {.stop_after = 5};
    mica_runner *runner = open_runner(&(mica_compute_options){.exact = true});
    mica_generate_options options = {
        .prompt = {.ids = PROMPT}, .token_limit = 5, .say = tell, .say_context = &whole};
    assert_int_equal(mica_runner_generate(runner, &options, NULL, &error), MICA_OK);
    mica_runner_reset(runner);
    options.token_limit = 9;
    options.say_context = &pieces;
    assert_int_equal(mica_runner_generate(runner, &options, NULL, &error), MICA_OK);
    assert_int_equal(pieces.tokens, 5);
    assert_memory_equal(pieces.ids, whole.ids, 5 * sizeof(int64_t));
    /* a second turn: as if all had been the prompt */
    char text[256] = PROMPT;
    for (int i = 0; i < 5; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), ",%ld", whole.ids[i]);
    snprintf(text + strlen(text), sizeof text - strlen(text), ",367,450");
    told second = {0}, at_once = {0};
    mica_compute_meters meters;
    options = (mica_generate_options){
        .prompt = {.ids = "367,450", .bos = true}, .token_limit = 20, .ignore_end = true, .sampling = drawn, .say = tell, .say_context = &second};
    assert_int_equal(mica_runner_generate(runner, &options, &meters, &error), MICA_OK);
    assert_int_equal(meters.prompt_tokens, 3); /* what was said last and not yet computed is before them, no second BOS is */
    mica_runner_reset(runner);
    options.prompt = (mica_prompt){.ids = text};
    options.say_context = &at_once;
    assert_int_equal(mica_runner_generate(runner, &options, NULL, &error), MICA_OK);
    assert_memory_equal(second.ids, at_once.ids, 20 * sizeof(int64_t));
    mica_runner_close(runner);
}

typedef struct conversation {
    mica_runner *runner;           /* that remembers */
    mica_chat_message messages[8]; /* as they are remembered here */
    uint64_t message_count;
    mica_token_list computed; /* ids of the positions that it has computed */
    char *texts[8];
} conversation;

static void add_message(conversation *talk, mica_chat_role role, const char *text) {
    char *copy = mica_strdup(text);
    assert_non_null(copy);
    talk->texts[talk->message_count] = copy;
    talk->messages[talk->message_count++] = (mica_chat_message){role, copy, strlen(copy)};
}

/* A turn by the conversation's runner, and by a fresh one that is given the whole conversation's ids: the same tokens, of which only those behind the
 * common beginning are computed. Hot draws: their text gives other ids than it was drawn as. Returns how many of the computed were for nothing. */
static uint64_t take_turn(conversation *talk, const mica_chat *chat, const char *checkpoint, const char *text) {
    mica_generate_options options = {.prompt = {.text = text}, .chat = true, .system = "Be brief.", .token_limit = 16, .ignore_end = true,
                                     .sampling = {.temperature = 8, .seed = 3}, .say = tell};
    mica_compute_meters meters;
    mica_token_list list = {0};
    mica_runner *fresh;
    mica_error error;
    told ours = {0}, expected = {0};
    char ids[2048] = "";
    if (talk->message_count == 0)
        add_message(talk, MICA_CHAT_SYSTEM, options.system);
    add_message(talk, MICA_CHAT_USER, text);
    assert_int_equal(mica_chat_render(chat, talk->messages, talk->message_count, true, &list, &error), MICA_OK);
    options.say_context = &ours;
    if (mica_runner_generate(talk->runner, &options, &meters, &error) != MICA_OK)
        fail_msg("%s", error.message);
    for (uint64_t i = 0; i < list.count; i++)
        snprintf(ids + strlen(ids), sizeof ids - strlen(ids), "%u,", list.ids[i]);
    options.chat = false;
    options.prompt = (mica_prompt){.ids = ids};
    options.say_context = &expected;
    assert_int_equal(mica_runner_open(checkpoint, &(mica_compute_options){.exact = true}, &fresh, &error), MICA_OK);
    assert_int_equal(mica_runner_generate(fresh, &options, NULL, &error), MICA_OK);
    mica_runner_close(fresh);
    assert_int_equal(ours.tokens, 16);
    assert_memory_equal(ours.ids, expected.ids, 16 * sizeof(int64_t));
    uint64_t same = 0;
    while (same < talk->computed.count && same + 1 < list.count && talk->computed.ids[same] == list.ids[same])
        same++;
    assert_int_equal(meters.prompt_tokens, list.count - same);
    const uint64_t lost = talk->computed.count - same;
    mica_token_list_release(&talk->computed);
    talk->computed = list;
    for (uint64_t i = 0; i + 1 < ours.tokens; i++) /* the last is said, not computed */
        mica_token_list_add(&talk->computed, (uint32_t)ours.ids[i]);
    add_message(talk, MICA_CHAT_ASSISTANT, ours.text);
    return lost;
}

static void make_talking(char path[300]) {
    char command[2048];
    snprintf(path, 300, "%s/chat", directory);
    snprintf(
        command, sizeof command,
        "mkdir %s && ln -s " TINY_K2
        "/* %s && printf '%%s' \"{%%%% for message in messages %%%%}{%%%% if message['role'] == 'system' %%%%}"
        "<|im_system|>system<|im_middle|>{%%%% elif message['role'] == 'user' %%%%}<|im_user|>user<|im_middle|>{%%%% else %%%%}"
        "<|im_assistant|>assistant<|im_middle|>{%%%% endif %%%%}{{ message['content'] }}<|im_end|>{%%%% endfor %%%%}\" >%s/chat_template.jinja",
        path, path, path);
    assert_int_equal(system(command), 0);
}

static bool refuse(void *context, const char *bytes, uint64_t length, int64_t id) {
    (void)context, (void)bytes, (void)length, (void)id;
    return false;
}

/* A turn that was stopped before its reply, and one that does not fit: as if they had not been. */
static void fail_turns(mica_runner *runner) {
    mica_error error;
    char longer[8001] = "";
    for (int i = 0; i < 8000; i += 5)
        memcpy(longer + i, "word ", 5);
    mica_generate_options options = {.prompt = {.text = "Whom should I have asked?"}, .chat = true, .system = "Be brief.", .say = refuse};
    assert_int_equal(mica_runner_generate(runner, &options, NULL, &error), MICA_INTERRUPTED);
    options.prompt.text = longer;
    expect(mica_runner_generate(runner, &options, NULL, &error), &error, MICA_BAD_INPUT, "tokens in the context that is left (of 512");
}

/* A conversation is rendered whole at each turn, and each turn's tokens are those of a fresh runner that is given all of it. */
static void test_chat(void **state) {
    (void)state;
    static const char *const turns[] = {"The capital of France is", "And God said,", "Once upon a time"};
    char path[300];
    mica_error error;
    mica_model *model;
    mica_tokenizer *tokenizer;
    mica_chat *chat;
    conversation talk = {0};
    make_talking(path);
    assert_int_equal(mica_model_open(path, NULL, &model, &error), MICA_OK);
    assert_int_equal(mica_tokenizer_open_source(model->source, &tokenizer, &error), MICA_OK);
    assert_int_equal(mica_chat_open(tokenizer, &chat, &error), MICA_OK);
    assert_int_equal(mica_runner_open(path, &(mica_compute_options){.exact = true}, &talk.runner, &error), MICA_OK);
    uint64_t lost = 0;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 3; i++) {
            if (i == 2)
                fail_turns(talk.runner);
            lost += take_turn(&talk, chat, path, turns[i]);
        }
        mica_runner_reset(talk.runner);
        for (uint64_t i = 0; i < talk.message_count; i++)
            mica_free(talk.texts[i]);
        talk.message_count = 0;
        mica_token_list_release(&talk.computed);
    }
    assert_true(lost > 0);
    mica_generate_options options = {.prompt = {.ids = "1,2"}, .chat = true};
    expect(mica_runner_generate(talk.runner, &options, NULL, &error), &error, MICA_USAGE, "a conversation: expected text, got ids");
    mica_runner_close(talk.runner);
    mica_chat_close(chat);
    mica_tokenizer_close(tokenizer);
    mica_model_close(model);
}

/* tiny-k2 whose likeliest next token of PROMPT is `id`: its row of the head is twice that of the likeliest. `change`: a command, in its directory. */
static void make_ending(const char *name, uint64_t likeliest, uint64_t id, const char *change, char path[300]) {
    char command[1400];
    uint16_t row[256];
    mica_model *model;
    mica_file *file;
    mica_error error;
    snprintf(path, 300, "%s/%s", directory, name);
    snprintf(command, sizeof command, "mkdir '%s' && cp " TINY_K2 "/*.* '%s' && cd '%s' && chmod u+w * && %s", path, path, path, change);
    assert_int_equal(system(command), 0);
    assert_int_equal(mica_model_open(path, NULL, &model, &error), MICA_OK);
    const mica_tensor *head = model->head->data;
    assert_true(head->dtype == MICA_BF16 && head->shape[1] == 256);
    assert_int_equal(mica_file_open_update(mica_file_path(mica_model_file(model, head)), &file, &error), MICA_OK);
    assert_int_equal(mica_file_read(file, head->offset + likeliest * sizeof row, row, sizeof row, &error), MICA_OK);
    for (int i = 0; i < 256; i++)
        row[i] += row[i] & 0x7f80 ? 0x80 : 0;
    assert_int_equal(mica_file_write(file, head->offset + id * sizeof row, row, sizeof row, &error), MICA_OK);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    mica_model_close(model);
}

/* A sequence ends at any of the configuration's tokens, also where there is no tokenizer, at what generation_config.json says ends a reply, and nowhere where
 * that is asked for. */
static void test_ends(void **state) {
    (void)state;
#define SET_EOS(ids) "rm tiktoken.model tokenizer_config.json && sed -i 's/\"eos_token_id\": 3841/\"eos_token_id\": " ids "/' config.json"
    static const struct {
        const char *name, *change;
        uint64_t id;
    } cases[] = {{"ends-first", SET_EOS("[5, 3841]"), 5},
                 {"ends-last", SET_EOS("[3841, 5]"), 5},
                 {"ends-reply", "echo '{\"eos_token_id\": [3841, 3842]}' >generation_config.json", 3842}};
    mica_error error;
    mica_compute_meters meters;
    told likeliest = {0};
    mica_generate_options options = {.prompt = {.ids = PROMPT}, .token_limit = 3, .say = tell, .say_context = &likeliest};
    mica_runner *runner = open_runner(&(mica_compute_options){0});
    assert_int_equal(mica_runner_generate(runner, &options, NULL, &error), MICA_OK);
    mica_runner_close(runner);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[300];
        make_ending(cases[i].name, (uint64_t)likeliest.ids[0], cases[i].id, cases[i].change, path);
        assert_int_equal(mica_runner_open(path, &(mica_compute_options){.exact = true}, &runner, &error), MICA_OK);
        for (int ignore = 0; ignore < 2; ignore++) {
            told got = {0};
            options.ignore_end = ignore;
            options.say_context = &got;
            mica_runner_reset(runner);
            assert_int_equal(mica_runner_generate(runner, &options, &meters, &error), MICA_OK);
            assert_int_equal(meters.generated_tokens, ignore ? 3 : 1);
            assert_int_equal(got.tokens, ignore ? 3 : 0);
            assert_true(!ignore || got.ids[0] == (int64_t)cases[i].id);
        }
        mica_runner_close(runner);
    }
}

/* A turn ends at its format's own token, of which neither configuration nor tokenizer need say so. */
static void test_turn_ends(void **state) {
    (void)state;
    char path[300];
    mica_error error;
    mica_compute_meters meters;
    mica_runner *runner;
    told likeliest = {0}, got = {0};
    mica_generate_options options = {.prompt = {.text = "And God said,"}, .chat = true, .token_limit = 3, .say = tell, .say_context = &likeliest};
    snprintf(path, sizeof path, "%s/chat", directory); /* test_chat's */
    assert_int_equal(mica_runner_open(path, &(mica_compute_options){.exact = true}, &runner, &error), MICA_OK);
    assert_int_equal(mica_runner_generate(runner, &options, NULL, &error), MICA_OK);
    mica_runner_close(runner);
    make_ending("ends-turn", (uint64_t)likeliest.ids[0], 3842, "cp ../chat/chat_template.jinja .", path);
    options.say_context = &got;
    assert_int_equal(mica_runner_open(path, &(mica_compute_options){.exact = true}, &runner, &error), MICA_OK);
    assert_int_equal(mica_runner_generate(runner, &options, &meters, &error), MICA_OK);
    assert_true(meters.generated_tokens == 1 && got.tokens == 0);
    mica_runner_close(runner);
}

/* The tail's options arrive each where it belongs: those that leave the likeliest alone make a hot draw greedy. */
static void test_sampling(void **state) {
    (void)state;
    static const mica_sampling cold[] = {{0}, {.temperature = 3, .top_p = 1e-9}, {.temperature = 3, .min_p = 1}, {.temperature = 3, .top_k = 1}};
    static const mica_sampling hot[] = {{.temperature = 3, .seed = 1}, {.temperature = 3, .seed = 2}, {.temperature = 3, .min_p = 1e-9, .seed = 1}};
    mica_error error;
    told got[7] = {0};
    mica_runner *runner = open_runner(&(mica_compute_options){0});
    for (int i = 0; i < 7; i++) {
        const mica_generate_options options = {.prompt = {.ids = PROMPT}, .token_limit = 6, .ignore_end = true, .sampling = i < 4 ? cold[i] : hot[i - 4],
                                               .say = tell, .say_context = &got[i]};
        mica_runner_reset(runner);
        assert_int_equal(mica_runner_generate(runner, &options, NULL, &error), MICA_OK);
        if (i < 4)
            assert_memory_equal(got[i].ids, got[0].ids, 6 * sizeof(int64_t));
        else
            assert_memory_not_equal(got[i].ids, got[0].ids, 6 * sizeof(int64_t));
    }
    assert_memory_not_equal(got[4].ids, got[5].ids, 6 * sizeof(int64_t)); /* another seed */
    assert_memory_equal(got[4].ids, got[6].ids, 6 * sizeof(int64_t));
    mica_runner_close(runner);
}

static void test_context_ends(void **state) {
    (void)state;
    mica_error error;
    mica_compute_meters meters;
    told got = {0};
    mica_runner *runner = open_runner(&(mica_compute_options){.context = 12});
    mica_generate_options options = {
        .prompt = {.text = "The capital of France is", .bos = true}, .ignore_end = true, .say = tell, .say_context = &got};
    assert_int_equal(mica_runner_generate(runner, &options, &meters, &error), MICA_OK);
    assert_int_equal(meters.prompt_tokens + meters.generated_tokens, 13); /* the last is said, not computed */
    expect(mica_runner_generate(runner, &options, &meters, &error), &error, MICA_BAD_INPUT,
           "expected at most 0 tokens in the context that is left (of 12");
    mica_runner_close(runner);
    runner = open_runner(&(mica_compute_options){.context = 7});
    options.prompt = (mica_prompt){.ids = PROMPT}; /* which fills it */
    assert_int_equal(mica_runner_generate(runner, &options, &meters, &error), MICA_OK);
    assert_true(meters.prompt_tokens == 7 && meters.generated_tokens == 1);
    mica_runner_close(runner);
}

static void test_refusals(void **state) {
    (void)state;
    mica_error error;
    mica_runner *runner = open_runner(&(mica_compute_options){0});
    mica_generate_options options = {.prompt = {.ids = "1,2,x"}};
    expect(mica_runner_generate(runner, &options, NULL, &error), &error, MICA_USAGE,
           "--ids: expected numbers with commas between them, got 'x'");
    options.prompt = (mica_prompt){.ids = "1,4096"};
    expect(mica_runner_generate(runner, &options, NULL, &error), &error, MICA_BAD_INPUT,
           "token id: expected below vocab_size (4096), got 4096");
    options.prompt = (mica_prompt){.ids = "@/nowhere"};
    expect(mica_runner_generate(runner, &options, NULL, &error), &error, MICA_IO, "/nowhere");
    options.prompt = (mica_prompt){.ids = ""};
    expect(mica_runner_generate(runner, &options, NULL, &error), &error, MICA_USAGE, "expected a prompt of at least one token");
    options.prompt = (mica_prompt){.ids = "1", .text = "a"};
    expect(mica_runner_generate(runner, &options, NULL, &error), &error, MICA_USAGE, "expected a text or token ids, got both");
    mica_runner_close(runner);
    expect(mica_runner_open(TINY_K2, &(mica_compute_options){.memory_bytes = 1}, &runner, &error), &error, MICA_USAGE,
           "memory: expected at least");
    expect(mica_logits(TINY_K2, &(mica_compute_options){0}, &(mica_prompt){.ids = "1"}, "x.txt", NULL, &error), &error, MICA_USAGE,
           "expected a file name that ends in .npy or .f32");
    expect(mica_logits(TINY_K2, &(mica_compute_options){0}, &(mica_prompt){.ids = ""}, "x.f32", NULL, &error), &error, MICA_USAGE,
           "expected at least one token");
    expect(mica_perplexity(TINY_K2, NULL, &(mica_compute_options){0}, &(mica_prompt){.ids = "1"}, NULL, NULL, &error), &error, MICA_USAGE,
           "expected at least two tokens");
    expect(mica_perplexity(TINY_K2, NULL, &(mica_compute_options){.context = 1}, &(mica_prompt){.ids = "1,2"}, NULL, NULL, &error), &error,
           MICA_USAGE, "expected windows of at least 2 tokens");
}

static void test_logits(void **state) {
    (void)state;
    json_t *golden = golden_open(TINY_K2 "/golden/golden.json"), *sequence = json_object_get(json_object_get(golden, "sequences"), "fact");
    static const char *const endings[] = {"npy", "f32"};
    mica_error error;
    for (int i = 0; i < 2; i++) {
        char path[300], *bytes, *report = NULL;
        uint64_t length, header = i == 0 ? 128 : 0;
        snprintf(path, sizeof path, "%s/logits.%s", directory, endings[i]);
        const mica_prompt prompt = {.text = json_string_value(json_object_get(sequence, "text")), .bos = true};
        if (mica_logits(TINY_K2, &(mica_compute_options){.exact = true}, &prompt, path, &report, &error) != MICA_OK)
            fail_msg("%s", error.message);
        assert_non_null(strstr(report, "18 tokens x 4096"));
        mica_string_free(report);
        float *expected = golden_raw(TINY_K2 "/golden", json_object_get(sequence, "logits"), 18 * 4096);
        assert_int_equal(mica_file_load(path, 1 << 20, &bytes, &length, &error), MICA_OK);
        assert_int_equal(length, header + 18 * 4096 * 4);
        for (int at = 0; at < 18 * 4096; at++)
            assert_true(fabs((double)((const float *)(bytes + header))[at] - (double)expected[at]) < 2e-5);
        if (header) {
            static const char start[] = "\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (18, 4096), }";
            assert_memory_equal(bytes, start, sizeof start - 1);
            assert_int_equal(strspn(bytes + sizeof start - 1, " "), header - sizeof start); /* spaces, and a newline at the end */
            assert_int_equal(bytes[header - 1], '\n');
        }
        mica_free(bytes);
        mica_free(expected);
    }
    json_decref(golden);
}

static ssize_t write_nothing(int fd, const void *buffer, size_t bytes, off_t offset) {
    (void)fd, (void)buffer, (void)bytes, (void)offset;
    errno = ENOSPC;
    return -1;
}

static int sync_nothing(int fd) {
    (void)fd;
    errno = EIO;
    return -1;
}

static void test_failed_write(void **state) {
    (void)state;
    char path[300], partial[320];
    mica_error error;
    snprintf(path, sizeof path, "%s/none/logits.f32", directory);
    expect(mica_logits(TINY_K2, &(mica_compute_options){0}, &(mica_prompt){.ids = "1"}, path, NULL, &error), &error, MICA_IO,
           "logits.f32.partial");
    snprintf(path, sizeof path, "%s/full.f32", directory);
    snprintf(partial, sizeof partial, "%s.partial", path);
    for (int i = 0; i < 2; i++) {
        mica_io faulty = *mica_io_current();
        if (i == 0)
            faulty.pwrite = write_nothing;
        else
            faulty.fsync = sync_nothing; /* what was written may not be there */
        mica_io_install(&faulty);
        mica_status status = mica_logits(TINY_K2, &(mica_compute_options){0}, &(mica_prompt){.ids = "1"}, path, NULL, &error);
        mica_io_install(NULL);
        expect(status, &error, MICA_IO, i == 0 ? "No space left on device" : "Input/output error");
        assert_false(mica_path_exists(path));
        assert_false(mica_path_exists(partial));
    }
}

static char *validation_ids(uint64_t count) {
    char *bytes;
    uint64_t length;
    assert_int_equal(mica_file_load(TINY_K2 "/golden/val_ids.u16", 1 << 20, &bytes, &length, NULL), MICA_OK);
    char *text = malloc(length * 4), *at = text;
    assert_non_null(text);
    for (uint64_t i = 0; i < length / 2 && i < count; i++)
        at += sprintf(at, "%u,", (unsigned)((const unsigned char *)bytes)[2 * i] + 256u * ((const unsigned char *)bytes)[2 * i + 1]);
    mica_free(bytes);
    return text;
}

static void test_perplexity(void **state) {
    (void)state;
    json_t *golden = golden_open(TINY_K2 "/golden/golden.json"), *report;
    char *ids = validation_ids(UINT64_MAX), *text = NULL, *json = NULL;
    mica_error error;
    const mica_compute_options options = {.context = 256, .threads = 2};
    if (mica_perplexity(TINY_K2, NULL, &options, &(mica_prompt){.ids = ids}, &text, &json, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_non_null(strstr(text, "6120 scored, in 24 windows of 256"));
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    double got = json_real_value(json_object_get(json_object_get(report, "model"), "nll"));
    double expected = json_real_value(json_object_get(json_object_get(golden, "perplexity"), "nll"));
    print_message("NLL %.6f, golden %.6f\n", got, expected);
    assert_true(fabs(got - expected) < 1e-3);
    if (validator_exists())
        assert_true(validates("perplexity.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
    json_decref(report);
    free(ids);
    ids = validation_ids(300);
    if (mica_perplexity(TINY_K2, NULL, &(mica_compute_options){.context = 128, .exact = true}, &(mica_prompt){.ids = ids, .bos = true},
                        &text, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_non_null(strstr(text, "254 scored, in 2 windows of 128")); /* with BOS each takes 127 tokens of the text */
    mica_string_free(text);
    free(ids);
    json_decref(golden);
}

/* tiny-k2 with a quarter of its final norm at zero. */
static void make_another(char path[300]) {
    char command[1400];
    mica_model *model;
    mica_file *file;
    mica_error error;
    static const uint16_t zeros[64];
    snprintf(path, 300, "%s/another", directory);
    snprintf(command, sizeof command, "mkdir '%s' && cp " TINY_K2 "/*.* '%s' && chmod u+w '%s'/*", path, path, path);
    assert_int_equal(system(command), 0);
    assert_int_equal(mica_model_open(path, NULL, &model, &error), MICA_OK);
    const mica_tensor *norm = model->final_norm->data;
    assert_int_equal(norm->dtype, MICA_BF16);
    assert_int_equal(mica_file_open_update(mica_file_path(mica_model_file(model, norm)), &file, &error), MICA_OK);
    assert_int_equal(mica_file_write(file, norm->offset, zeros, sizeof zeros, &error), MICA_OK);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    mica_model_close(model);
}

static float *exact_logits(const char *checkpoint, const char *ids, uint64_t count) {
    char path[300], *bytes;
    uint64_t length;
    mica_error error;
    snprintf(path, sizeof path, "%s/side.f32", directory);
    if (mica_logits(checkpoint, &(mica_compute_options){.exact = true}, &(mica_prompt){.ids = ids}, path, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(mica_file_load(path, 1 << 24, &bytes, &length, &error), MICA_OK);
    assert_int_equal(length, count * 4096 * sizeof(float));
    return (float *)(void *)bytes;
}

static double log_sum(const float *row) {
    double sum = 0;
    for (int i = 0; i < 4096; i++)
        sum += exp((double)row[i] - 30);
    return 30 + log(sum);
}

/* Of the tokens behind the first, by the definitions: what is said of a model's losses. */
typedef struct sample {
    double sum, squares;
    uint64_t count;
} sample;

static void add(sample *to, double value) {
    to->sum += value;
    to->squares += value * value;
    to->count++;
}

static void add_losses(sample *to, const float *rows, const char *ids, uint64_t count) {
    const char *at = strchr(ids, ',') + 1;
    for (uint64_t t = 0; t + 1 < count; t++, at = strchr(at, ',') + 1)
        add(to, log_sum(rows + t * 4096) - (double)rows[t * 4096 + strtoul(at, NULL, 10)]);
}

static void assert_near(const json_t *object, const char *key, double expected) {
    const double got = json_number_value(json_object_get(object, key));
    if (!(fabs(got - expected) <= 1e-6 * fabs(expected)))
        fail_msg("%s: expected %.12g, got %.12g", key, expected, got);
}

/* The mean, and the standard error that a sample's own deviation gives it. */
static void assert_mean(const json_t *object, const char *mean, const char *standard_error, const sample *of) {
    const double n = (double)of->count, deviation = sqrt((of->squares - of->sum * of->sum / n) / (n - 1));
    assert_near(object, mean, of->sum / n);
    assert_near(object, standard_error, deviation / sqrt(n));
}

/* tiny-k2 with a context of more than a batch. */
static void make_longer(char path[300]) {
    char command[1400];
    snprintf(path, 300, "%s/longer", directory);
    snprintf(command, sizeof command,
             "mkdir '%s' && cp " TINY_K2 "/*.* '%s' && chmod u+w '%s'/* && "
             "sed -i 's/\"max_position_embeddings\": 512/\"max_position_embeddings\": 1024/' '%s/config.json'", path, path, path, path);
    assert_int_equal(system(command), 0);
}

/* Two windows of more than a batch, each with a BOS of its own: every token of the text is scored, also across the border of batches, and none across that
 * of windows; what does not fill a window is left. */
static void test_windows(void **state) {
    (void)state;
    enum { WINDOW = 600, BODY = WINDOW - 1 };
    char *ids = validation_ids(2 * BODY + 5), *json = NULL, window[6 * WINDOW], longer[300];
    mica_error error;
    json_t *report;
    mica_model *model;
    sample losses = {0};
    make_longer(longer);
    if (mica_perplexity(longer, NULL, &(mica_compute_options){.context = WINDOW, .exact = true}, &(mica_prompt){.ids = ids, .bos = true}, NULL, &json,
                        &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(mica_model_open(longer, NULL, &model, NULL), MICA_OK);
    const char *at = ids;
    for (int i = 0; i < 2; i++) {
        int length = snprintf(window, sizeof window, "%lld,", (long long)model->config.bos_token_id);
        for (int t = 0; t < BODY; t++, at = strchr(at, ',') + 1)
            length += snprintf(window + length, sizeof window - (size_t)length, "%lu,", strtoul(at, NULL, 10));
        float *rows = exact_logits(longer, window, WINDOW);
        add_losses(&losses, rows, window, WINDOW);
        mica_free(rows);
    }
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    assert_int_equal(json_integer_value(json_object_get(report, "tokens_scored")), 2 * BODY);
    assert_mean(json_object_get(report, "model"), "nll", "nll_standard_error", &losses);
    assert_near(json_object_get(report, "model"), "perplexity", exp(losses.sum / (2 * BODY)));
    json_decref(report);
    mica_model_close(model);
    mica_string_free(json);
    free(ids);
}

/* A text shorter than a window is one. One loss has no standard error, two have. */
static void test_few_tokens(void **state) {
    (void)state;
    static const mica_prompt prompts[] = {{.ids = "3840", .bos = true}, {.ids = "3840,367,450"}};
    for (int i = 0; i < 2; i++) {
        char *json = NULL;
        mica_error error;
        json_t *report;
        if (mica_perplexity(TINY_K2, NULL, &(mica_compute_options){.threads = 1}, &prompts[i], NULL, &json, &error) != MICA_OK)
            fail_msg("%s", error.message);
        assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
        assert_int_equal(json_integer_value(json_object_get(report, "tokens_scored")), i + 1);
        assert_int_equal(json_integer_value(json_object_get(report, "window")), i + 2);
        assert_int_equal(json_is_real(json_object_get(json_object_get(report, "model"), "nll_standard_error")), i == 1);
        json_decref(report);
        mica_string_free(json);
    }
}

/* One window of 32, all but its first token scored: KL(other || model) by the definition, from logits files. */
static void test_against_another(void **state) {
    (void)state;
    char other[300], *ids = validation_ids(32), *text = NULL, *json = NULL;
    mica_error error;
    json_t *report;
    make_another(other);
    if (mica_perplexity(TINY_K2, other, &(mica_compute_options){.context = 32, .exact = true}, &(mica_prompt){.ids = ids}, &text, &json,
                        &error) != MICA_OK)
        fail_msg("%s", error.message);
    float *model_rows = exact_logits(TINY_K2, ids, 32), *other_rows = exact_logits(other, ids, 32);
    sample divergences = {0}, model_losses = {0}, other_losses = {0};
    double agree = 0, largest = 0;
    for (int t = 0; t < 31; t++) {
        const float *p = other_rows + t * 4096, *q = model_rows + t * 4096;
        double p_sum = log_sum(p), q_sum = log_sum(q), divergence = 0;
        int best[2] = {0, 0};
        for (int i = 0; i < 4096; i++) {
            divergence += exp((double)p[i] - p_sum) * ((double)p[i] - p_sum - (double)q[i] + q_sum);
            best[0] = p[i] > p[best[0]] ? i : best[0];
            best[1] = q[i] > q[best[1]] ? i : best[1];
        }
        add(&divergences, divergence);
        largest = fmax(largest, divergence);
        agree += best[0] == best[1] ? 1.0 / 31 : 0;
    }
    add_losses(&model_losses, model_rows, ids, 32);
    add_losses(&other_losses, other_rows, ids, 32);
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    const json_t *comparison = json_object_get(report, "comparison"), *sides[] = {json_object_get(report, "model"), json_object_get(report, "other")};
    print_message("KL %.9f by the definition, at most %.3f; the same argmax %.3f\n", divergences.sum / 31, largest, agree);
    assert_true(divergences.sum / 31 > 0.01 && agree > 0 && agree < 1);
    assert_mean(comparison, "kl_mean", "kl_standard_error", &divergences);
    assert_near(comparison, "kl_largest", largest);
    assert_near(comparison, "top1_agreement", agree);
    assert_mean(sides[0], "nll", "nll_standard_error", &model_losses);
    assert_mean(sides[1], "nll", "nll_standard_error", &other_losses);
    assert_true(fabs(model_losses.sum - other_losses.sum) > 31e-3);
    if (validator_exists())
        assert_true(validates("perplexity.schema.json", json));
    json_decref(report);
    mica_free(model_rows);
    mica_free(other_rows);
    mica_string_free(text);
    mica_string_free(json);
    free(ids);
}

/* A model is no distance from itself. */
static void test_against(void **state) {
    (void)state;
    char *ids = validation_ids(64), *text = NULL, *json = NULL;
    json_t *report;
    mica_error error;
    if (mica_perplexity(TINY_K2, TINY_K2, &(mica_compute_options){.context = 32}, &(mica_prompt){.ids = ids}, &text, &json, &error) !=
        MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    const json_t *comparison = json_object_get(report, "comparison");
    assert_true(fabs(json_real_value(json_object_get(comparison, "kl_mean"))) < 1e-12);
    assert_true(json_real_value(json_object_get(comparison, "top1_agreement")) >= 1);
    if (validator_exists())
        assert_true(validates("perplexity.schema.json", json));
    json_decref(report);
    mica_string_free(text);
    mica_string_free(json);
    free(ids);
}

static void test_other_vocabulary(void **state) {
    (void)state;
    mica_error error;
    if (!mica_path_is_directory(FIXTURES))
        skip();
    expect(mica_perplexity(TINY_K2, FIXTURES "/k25", &(mica_compute_options){0}, &(mica_prompt){.ids = "1,2"}, NULL, NULL, &error), &error,
           MICA_USAGE, "vocab_size: expected that of");
}

/* A model that can be inspected, but not computed: told before anything is written, of a checkpoint (a fixture) and of a GGUF's
 * architecture. */
static void test_deepseek_v4_is_refused(void **state) {
    (void)state;
    mica_gguf_metadata keys = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    mica_gguf_writer *writer;
    char paths[2][300], output[300];
    snprintf(paths[0], sizeof paths[0], "%s/v4.gguf", directory);
    snprintf(paths[1], sizeof paths[1], "%s", MICA_SOURCE_DIR "/../shared/fixtures/public/v4-flash");
    mica_gguf_add_string(&keys, "general.architecture", "deepseek4");
    assert_int_equal(mica_gguf_layout_make(NULL, 0, &keys, 0, &layout, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_open(paths[0], &layout, true, &writer, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_finish(writer, NULL), MICA_OK);
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&keys);
    if (!mica_path_is_directory(paths[1]))
        print_message("skipped: the checkpoint (no fixtures)\n");
    for (int i = 0; i < 1 + mica_path_is_directory(paths[1]); i++) {
        static const char *const sentences[] = {
            "v4.gguf: key general.architecture: expected deepseek2, llama or qwen3, got deepseek4",
            "config.json: model_type: expected an architecture that is run, got deepseek_v4: its hyper-connections, compressed "
            "attention and hash routing are not computed; it can be inspected, indexed and verified"};
        const mica_compute_options options = {.context = 2};
        const mica_prompt prompt = {.ids = "1,2,3,4"};
        mica_runner *runner;
        mica_error error;
        expect(mica_runner_open(paths[i], &options, &runner, &error), &error, MICA_BAD_INPUT, sentences[i]);
        snprintf(output, sizeof output, "%s/v4.f32", directory);
        expect(mica_logits(paths[i], &options, &prompt, output, NULL, &error), &error, MICA_BAD_INPUT, sentences[i]);
        assert_false(mica_path_exists(output));
        expect(mica_perplexity(paths[i], NULL, &options, &prompt, NULL, NULL, &error), &error, MICA_BAD_INPUT, sentences[i]);
        expect(mica_imatrix_collect(paths[i], output, &options, &(mica_imatrix_options){0}, &prompt, NULL, NULL, &error), &error,
               MICA_BAD_INPUT, sentences[i]);
        assert_false(mica_path_exists(output));
        char ids[300], **list;
        uint64_t count;
        snprintf(output, sizeof output, "%s/v4-routing", directory);
        snprintf(ids, sizeof ids, "%s/v4.ids", directory);
        assert_int_equal(mica_file_replace(ids, "1,2\n", 4, NULL), MICA_OK);
        expect(mica_route(paths[i], output, &(mica_route_options){.ids = ids}, NULL, &error), &error, MICA_BAD_INPUT, sentences[i]);
        if (mica_path_is_directory(output)) { /* and nothing in it */
            assert_int_equal(mica_directory_list(output, &list, &count, NULL), MICA_OK);
            assert_int_equal(count, 0);
            mica_directory_names_free(list, count);
        }
    }
}

static bool stop_second(void *context, const mica_progress *progress) {
    (void)context;
    return progress->units_done < 2;
}

/* Ended between two windows: said, and no half of a report. */
static void test_perplexity_is_interrupted(void **state) {
    (void)state;
    mica_error error;
    char *text = NULL, *json = NULL;
    const mica_compute_options options = {.context = 4, .progress = stop_second};
    const mica_prompt prompt = {.ids = "3840,367,450,267,597,2439,300,40,989,425,11,658"};
    for (int against = 0; against < 2; against++) {
        expect(mica_perplexity(TINY_K2, against ? TINY_K2 : NULL, &options, &prompt, &text, &json, &error), &error, MICA_INTERRUPTED,
               "interrupted after 2 of 3 windows");
        assert_null(text);
        assert_null(json);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_greedy),
                                       cmocka_unit_test(test_goes_on),
                                       cmocka_unit_test(test_context_ends),
                                       cmocka_unit_test(test_chat),
                                       cmocka_unit_test(test_ends),
                                       cmocka_unit_test(test_turn_ends),
                                       cmocka_unit_test(test_sampling),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_logits),
                                       cmocka_unit_test(test_failed_write),
                                       cmocka_unit_test(test_perplexity),
                                       cmocka_unit_test(test_against),
                                       cmocka_unit_test(test_windows),
                                       cmocka_unit_test(test_few_tokens),
                                       cmocka_unit_test(test_against_another),
                                       cmocka_unit_test(test_other_vocabulary),
                                       cmocka_unit_test(test_deepseek_v4_is_refused),
                                       cmocka_unit_test(test_perplexity_is_interrupted)};
    return cmocka_run_group_tests(tests, make, clean);
}
