/* mica_export_safetensors of a GGUF: the tensors are those that the checkpoint had, under their names, bit for bit; config.json, read
 * again, says what the metadata said; the tokenizer's files give the same ids. llama's rows and llama3's scaling are judged by files made
 * by hand here; other programs read the result in tests/interop/export_back.py. */
#include <math.h>

#include "export_helpers.h"

#include "base/no_memory.h"
#include "formats/gguf_write.h"
#include "model/gguf_model.h"
#include "model/model.h"
#include "model/rope.h"
#include "model/tokenizer.h"
#include "validate.h"

static void back_to(const char *source, const char *directory, const mica_export_safetensors_options *options) {
    mica_error error = {MICA_OK, ""};
    const mica_status status = mica_export_safetensors(source, directory, options, NULL, NULL, &error);
    if (status != MICA_OK)
        print_error("%s\n", error.message);
    assert_int_equal(status, MICA_OK);
}

static mica_model *open_model(const char *path) {
    mica_model *model = NULL;
    mica_error error = {MICA_OK, ""};
    if (mica_model_open(path, NULL, &model, &error) != MICA_OK)
        fail_msg("%s", error.message);
    return model;
}

static void assert_same_weights(const char *left, const char *right) {
    mica_model *a = open_model(left), *b = open_model(right);
    assert_int_equal(a->weight_count, b->weight_count);
    for (uint64_t i = 0; i < a->weight_count; i++) {
        float *x = NULL, *y = NULL;
        assert_string_equal(a->weights[i].name, b->weights[i].name);
        assert_int_equal(a->weights[i].rows, b->weights[i].rows);
        assert_int_equal(a->weights[i].columns, b->weights[i].columns);
        assert_int_equal(mica_weight_load(a, &a->weights[i], &x, NULL), MICA_OK);
        assert_int_equal(mica_weight_load(b, &b->weights[i], &y, NULL), MICA_OK);
        if (memcmp(x, y, a->weights[i].rows * a->weights[i].columns * sizeof *x) != 0)
            fail_msg("%s: other values", a->weights[i].name);
        mica_free(x);
        mica_free(y);
    }
    mica_model_close(a);
    mica_model_close(b);
}

static void test_tensors(void **state) {
    (void)state;
    /* float32 holds everything */
    export_to(TINY, scratch("f32.gguf"), &(mica_export_gguf_options){.type = "f32", .split_bytes = 20000000});
    back_to(scratch("f32-00001-of-00003.gguf"), scratch("f32"), NULL);
    assert_same_weights(TINY, scratch("f32"));
    /* bfloat16 is what the checkpoint itself would be decoded to: the very file */
    export_to(TINY, scratch("bf16.gguf"), &(mica_export_gguf_options){.type = "bf16"});
    back_to(scratch("bf16.gguf"), scratch("back"), &(mica_export_safetensors_options){.dtype = "bf16"});
    back_to(TINY, scratch("direct"), &(mica_export_safetensors_options){.dtype = "bf16"});
    assert_true(same_bytes(scratch("back/model.safetensors"), scratch("direct/model.safetensors")));
    /* and so with float32, threads and shards */
    back_to(scratch("f32-00001-of-00003.gguf"), scratch("wide"),
            &(mica_export_safetensors_options){.dtype = "f32", .threads = 3, .shard_bytes = 9000000});
    back_to(TINY, scratch("direct32"), &(mica_export_safetensors_options){.dtype = "f32", .threads = 1, .shard_bytes = 9000000});
    assert_true(same_bytes(scratch("wide/model-00003-of-00006.safetensors"), scratch("direct32/model-00003-of-00006.safetensors")));
    assert_same_weights(TINY, scratch("direct32"));
}

/* Blocks are decoded: to float32 they are the file's values, to bfloat16 the nearest. */
static void test_blocks(void **state) {
    (void)state;
    export_to(TINY, scratch("q4.gguf"), &(mica_export_gguf_options){.type = "q4_k_m"});
    back_to(scratch("q4.gguf"), scratch("q4-f32"), &(mica_export_safetensors_options){.dtype = "f32"});
    back_to(scratch("q4.gguf"), scratch("q4-bf16"), NULL);
    mica_model *file = open_model(scratch("q4.gguf")), *wide = open_model(scratch("q4-f32")), *narrow = open_model(scratch("q4-bf16"));
    const mica_weight *blocks = mica_model_weight(file, "blk.3.ffn_up_exps.weight[17]");
    const mica_weight *decoded = mica_model_weight(wide, "model.layers.3.mlp.experts.17.up_proj.weight");
    const mica_weight *rounded = mica_model_weight(narrow, "model.layers.3.mlp.experts.17.up_proj.weight");
    float *x = NULL, *y = NULL, *z = NULL;
    assert_int_equal(blocks->data->dtype, MICA_Q4_K);
    assert_int_equal(decoded->data->dtype, MICA_F32);
    assert_int_equal(rounded->data->dtype, MICA_BF16);
    assert_int_equal(mica_model_weight(narrow, "model.layers.3.mlp.gate.weight")->data->dtype, MICA_F32); /* was plain */
    assert_int_equal(mica_weight_load(file, blocks, &x, NULL), MICA_OK);
    assert_int_equal(mica_weight_load(wide, decoded, &y, NULL), MICA_OK);
    assert_int_equal(mica_weight_load(narrow, rounded, &z, NULL), MICA_OK);
    for (uint64_t i = 0; i < blocks->rows * blocks->columns; i++) {
        assert_true(x[i] == y[i]);
        assert_true(fabsf(x[i] - z[i]) <= fabsf(x[i]) / 256);
    }
    mica_free(x);
    mica_free(y);
    mica_free(z);
    mica_model_close(file);
    mica_model_close(wide);
    mica_model_close(narrow);
}

/* ---- config.json */

#define SAME(field) assert_true(a->field == b->field)
static void assert_same_config(const mica_config *a, const mica_config *b) {
    SAME(hidden_size); SAME(intermediate_size); SAME(vocab_size); SAME(num_hidden_layers); SAME(num_attention_heads); SAME(head_dim);
    SAME(tie_word_embeddings);
    SAME(rms_norm_eps);
    SAME(latent_norm_eps);
    SAME(max_position_embeddings);
    SAME(bos_token_id);
    SAME(eos_token_count);
    SAME(eos_token_ids[0]); SAME(n_routed_experts); SAME(n_shared_experts); SAME(num_experts_per_tok); SAME(moe_intermediate_size);
    SAME(first_k_dense_replace); SAME(n_group); SAME(topk_group); SAME(norm_topk_prob); SAME(routed_scaling_factor); SAME(q_lora_rank);
    SAME(kv_lora_rank); SAME(qk_nope_head_dim); SAME(qk_rope_head_dim); SAME(v_head_dim); SAME(rope_theta); SAME(rope_factor);
    SAME(rope_beta_fast); SAME(rope_beta_slow); SAME(rope_mscale); SAME(rope_mscale_all_dim); SAME(rope_original_context);
    assert_string_equal(a->rope_type, b->rope_type);
    assert_string_equal(a->scoring_func, b->scoring_func);
    assert_string_equal(a->topk_method, b->topk_method);
    assert_string_equal(a->hidden_act, b->hidden_act);
    assert_string_equal(a->architecture->family, b->architecture->family);
}

static void test_config(void **state) {
    (void)state;
    export_to(TINY, scratch("config.gguf"), &(mica_export_gguf_options){.type = "f16"});
    back_to(scratch("config.gguf"), scratch("config"), NULL);
    mica_model *published = open_model(TINY), *file = open_model(scratch("config.gguf")), *back = open_model(scratch("config"));
    assert_same_config(&file->config, &back->config);
    assert_same_config(&published->config, &back->config);
    mica_model_close(published);
    mica_model_close(file);
    mica_model_close(back);
    /* softmax, untied, older files' one tensor of keys and values, gates and ups in one */
    for (int kind = 0; kind < 4; kind++) {
        gguf_model made = {
            .legacy = kind == 1, .untied = kind == 2, .fused = kind == 3, .drop = kind == 2 ? "deepseek2.expert_gating_func" : NULL};
        gguf_write(&made, "small.gguf");
        back_to(scratch("small.gguf"), scratch("small"), &(mica_export_safetensors_options){.force = kind > 0});
        file = open_model(scratch("small.gguf"));
        back = open_model(scratch("small"));
        assert_same_config(&file->config, &back->config);
        for (int projection = 0; projection < MICA_PROJECTION_COUNT; projection++) {
            const uint64_t place = 2 * MICA_PROJECTION_COUNT + (uint64_t)projection;
            float *x = NULL, *y = NULL;
            const mica_weight *weight = file->layers[1].experts[place];
            assert_int_equal(mica_weight_load(file, weight, &x, NULL), MICA_OK);
            assert_int_equal(mica_weight_load(back, back->layers[1].experts[place], &y, NULL), MICA_OK);
            for (uint64_t i = 0; i < weight->rows * weight->columns; i++) /* bfloat16 at worst */
                assert_true(fabsf(x[i] - y[i]) <= fabsf(x[i]) / 256);
            mica_free(x);
            mica_free(y);
        }
        mica_model_close(file);
        mica_model_close(back);
    }
}

/* ---- the tokenizer */

static void test_tokenizer(void **state) {
    (void)state;
    static const char *const texts[] = {"The capital of France is", "  12345 x\n\n\tÄÖ don't WE'LL 漢字 and\r\n 🙂 [BOS]<|im_end|>x",
                                        "", "\xff\xfe broken", "a   b    "};
    export_to(TINY, scratch("words.gguf"), &(mica_export_gguf_options){.type = "q8_0"});
    back_to(scratch("words.gguf"), scratch("words"), NULL);
    mica_tokenizer *from[2] = {NULL, NULL};
    const mica_token_files files[2] = {{.directory = TINY}, {.directory = scratch("words")}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(mica_tokenizer_open_files(&files[i], &from[i], NULL), MICA_OK);
    for (size_t t = 0; t < 2 * sizeof texts / sizeof *texts; t++) {
        mica_token_list ids[2] = {{0}, {0}};
        for (int i = 0; i < 2; i++)
            assert_int_equal(mica_tokenizer_append(from[i], texts[t / 2], strlen(texts[t / 2]), t % 2, &ids[i], NULL), MICA_OK);
        assert_int_equal(ids[0].count, ids[1].count);
        if (ids[0].count > 0)
            assert_memory_equal(ids[0].ids, ids[1].ids, ids[0].count * sizeof *ids[0].ids);
        mica_token_list_release(&ids[0]);
        mica_token_list_release(&ids[1]);
    }
    const mica_token_roles *a = mica_tokenizer_roles(from[0]), *b = mica_tokenizer_roles(from[1]);
    assert_true(a->bos == b->bos && a->eos == b->eos && a->unknown == b->unknown && a->padding == b->padding && a->add_bos == b->add_bos);
    for (int i = 0; i < 2; i++)
        mica_tokenizer_close(from[i]);
}

/* ---- llama: rows of heads, biases, llama3's divisors, by hand */

enum { HEADS = 2, KEYS = 1, WIDTH = 64, HIDDEN = 16, WIDE = 32, WORDS = 32 };

typedef struct llama_file {
    mica_gguf_tensor tensors[32];
    float *values[32];
    uint64_t count;
} llama_file;

static float *put_llama(llama_file *file, const char *name, uint64_t rows, uint64_t columns) {
    mica_gguf_tensor *tensor = &file->tensors[file->count];
    *tensor = (mica_gguf_tensor){.name = name, .dtype = MICA_F32, .rank = rows ? 2 : 1, .shape = {rows ? rows : columns, rows ? columns : 0}, .number = file->count};
    float *values = file->values[file->count++] = mica_calloc((rows ? rows : 1) * columns, sizeof *values);
    for (uint64_t i = 0; i < (rows ? rows : 1) * columns; i++)
        values[i] = (float)i;
    return values;
}

static void write_llama(const char *path, double factor, double high, uint64_t context) {
    llama_file file = {.count = 0};
    mica_gguf_metadata keys = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    mica_gguf_writer *writer;
    mica_config config = {.rope_theta = 500000,
                          .head_dim = WIDTH,
                          .rope_factor = factor,
                          .rope_low_freq_factor = 1,
                          .rope_high_freq_factor = high,
                          .rope_original_context = context};
    static const struct {
        const char *name;
        uint32_t value;
    } numbers[] = {{"llama.block_count", 1},
                   {"llama.context_length", 131072},
                   {"llama.embedding_length", HIDDEN},
                   {"llama.feed_forward_length", WIDE},
                   {"llama.attention.head_count", HEADS},
                   {"llama.attention.head_count_kv", KEYS},
                   {"llama.attention.key_length", WIDTH},
                   {"llama.attention.value_length", WIDTH},
                   {"llama.vocab_size", WORDS},
                   {"llama.rope.dimension_count", WIDTH}};
    mica_gguf_add_string(&keys, "general.architecture", "llama");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        mica_gguf_add_u32(&keys, numbers[i].name, numbers[i].value);
    mica_gguf_add_f32(&keys, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    mica_gguf_add_f32(&keys, "llama.rope.freq_base", 500000);
    put_llama(&file, "token_embd.weight", WORDS, HIDDEN);
    put_llama(&file, "output_norm.weight", 0, HIDDEN);
    put_llama(&file, "blk.0.attn_norm.weight", 0, HIDDEN);
    put_llama(&file, "blk.0.ffn_norm.weight", 0, HIDDEN);
    put_llama(&file, "blk.0.attn_q.weight", HEADS * WIDTH, HIDDEN);
    put_llama(&file, "blk.0.attn_k.weight", KEYS * WIDTH, HIDDEN);
    put_llama(&file, "blk.0.attn_v.weight", KEYS * WIDTH, HIDDEN);
    put_llama(&file, "blk.0.attn_output.weight", HIDDEN, HEADS * WIDTH);
    put_llama(&file, "blk.0.attn_q.bias", 0, HEADS * WIDTH);
    put_llama(&file, "blk.0.attn_k.bias", 0, KEYS * WIDTH);
    put_llama(&file, "blk.0.attn_v.bias", 0, KEYS * WIDTH);
    put_llama(&file, "blk.0.attn_output.bias", 0, HIDDEN);
    put_llama(&file, "blk.0.ffn_gate.weight", WIDE, HIDDEN);
    put_llama(&file, "blk.0.ffn_up.weight", WIDE, HIDDEN);
    put_llama(&file, "blk.0.ffn_down.weight", HIDDEN, WIDE);
    float *divisors = put_llama(&file, "rope_freqs.weight", 0, WIDTH / 2);
    for (uint64_t i = 0; i < WIDTH / 2; i++)
        divisors[i] = factor > 0 ? (float)mica_rope_llama3_divisor(&config, i) : 1.5f + (float)i;
    mica_gguf_tensor *tensors = mica_calloc(file.count, sizeof *tensors);
    memcpy(tensors, file.tensors, file.count * sizeof *tensors);
    assert_int_equal(mica_gguf_layout_make(tensors, file.count, &keys, 0, &layout, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_open(path, &layout, true, &writer, NULL), MICA_OK);
    for (uint64_t i = 0; i < file.count; i++) {
        assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[i], 0, file.values[i], layout.tensors[i].bytes, NULL), MICA_OK);
        mica_free(file.values[i]);
    }
    assert_int_equal(mica_gguf_writer_finish(writer, NULL), MICA_OK);
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&keys);
}

/* In the file row 2 i of a head is the checkpoint's row i, and 2 i + 1 its row i + half. */
static void assert_parted(const mica_model *model, const char *name, uint64_t heads, uint64_t columns) {
    const mica_weight *weight = mica_model_weight(model, name);
    float *values = NULL;
    assert_non_null(weight);
    assert_int_equal(mica_weight_load(model, weight, &values, NULL), MICA_OK);
    for (uint64_t head = 0; head < heads; head++)
        for (uint64_t i = 0; i < WIDTH / 2; i++)
            for (uint64_t column = 0; column < columns; column++) {
                const uint64_t at = head * WIDTH;
                assert_true(values[(at + i) * columns + column] == (float)((at + 2 * i) * columns + column));
                assert_true(values[(at + i + WIDTH / 2) * columns + column] == (float)((at + 2 * i + 1) * columns + column));
            }
    mica_free(values);
}

static void test_llama(void **state) {
    (void)state;
    static const struct {
        double factor, high;
        uint64_t context;
    } kinds[] = {{8, 4, 8192}, {32, 4, 8192}, {4, 6.5, 2048}};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        write_llama(scratch("llama.gguf"), kinds[k].factor, kinds[k].high, kinds[k].context);
        back_to(scratch("llama.gguf"), scratch("llama"), &(mica_export_safetensors_options){.force = k > 0});
        mica_model *model = open_model(scratch("llama"));
        assert_string_equal(model->config.rope_type, "llama3");
        assert_true(model->config.rope_factor == kinds[k].factor);
        assert_true(model->config.attention_bias && model->config.tie_word_embeddings && !model->config.mlp_bias);
        mica_config expected = {.rope_theta = 500000, .head_dim = WIDTH, .rope_factor = kinds[k].factor, .rope_low_freq_factor = 1,
                                .rope_high_freq_factor = kinds[k].high, .rope_original_context = kinds[k].context};
        for (uint64_t i = 0; i < WIDTH / 2; i++)
            assert_true((float)mica_rope_llama3_divisor(&model->config, i) == (float)mica_rope_llama3_divisor(&expected, i));
        assert_parted(model, "model.layers.0.self_attn.q_proj.weight", HEADS, HIDDEN);
        assert_parted(model, "model.layers.0.self_attn.k_proj.weight", KEYS, HIDDEN);
        assert_parted(model, "model.layers.0.self_attn.q_proj.bias", HEADS, 1);
        assert_parted(model, "model.layers.0.self_attn.k_proj.bias", KEYS, 1);
        mica_model_close(model);
    }
    mica_error error;
    write_llama(scratch("odd.gguf"), 0, 0, 0);
    assert_int_equal(mica_export_safetensors(scratch("odd.gguf"), scratch("odd"), NULL, NULL, NULL, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "rope_freqs.weight"));
    assert_false(mica_path_exists(scratch("odd")));
}

/* ---- interruptions, refusals, memory */

static bool stop_after(void *context, const mica_progress *progress) {
    return progress->units_done < *(const uint64_t *)context;
}

static void test_resume(void **state) {
    (void)state;
    mica_error error;
    export_to(TINY, scratch("r.gguf"), &(mica_export_gguf_options){.type = "q4_k_m"});
    back_to(scratch("r.gguf"), scratch("straight"), NULL);
    uint64_t stops[] = {1, 100, 300};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        const mica_export_safetensors_options options = {.resume = i > 0, .progress = stop_after, .progress_context = &stops[i]};
        assert_int_equal(mica_export_safetensors(scratch("r.gguf"), scratch("stopped"), &options, NULL, NULL, &error), MICA_INTERRUPTED);
        assert_false(mica_path_exists(scratch("stopped/model.safetensors")));
        assert_false(mica_path_exists(scratch("stopped/config.json")));
    }
    back_to(scratch("r.gguf"), scratch("stopped"), &(mica_export_safetensors_options){.resume = true});
    assert_true(same_bytes(scratch("stopped/model.safetensors"), scratch("straight/model.safetensors")));
    assert_true(same_bytes(scratch("stopped/tokenizer.json"), scratch("straight/tokenizer.json")));
}

static void test_full_disk(void **state) {
    (void)state;
    mica_error error;
    mica_io full = *mica_io_current();
    full.pwrite = pwrite_on_full_disk;
    export_to(TINY, scratch("d.gguf"), &(mica_export_gguf_options){.type = "q5_k_m"});
    mica_io_install(&full);
    const mica_status status = mica_export_safetensors(scratch("d.gguf"), scratch("full"), NULL, NULL, NULL, &error);
    const mica_status again = mica_export_gguf(scratch("d.gguf"), scratch("e.gguf"), NULL, NULL, NULL, &error);
    mica_io_install(NULL);
    assert_int_equal(status, MICA_IO);
    assert_int_equal(again, MICA_IO);
    assert_false(mica_path_exists(scratch("full/model.safetensors")));
    assert_false(mica_path_exists(scratch("e.gguf")));
    back_to(scratch("d.gguf"), scratch("full"), &(mica_export_safetensors_options){.resume = true});
    back_to(scratch("d.gguf"), scratch("roomy"), NULL);
    assert_true(same_bytes(scratch("full/model.safetensors"), scratch("roomy/model.safetensors")));
    export_to(scratch("d.gguf"), scratch("e.gguf"), &(mica_export_gguf_options){.resume = true});
    assert_true(same_bytes(scratch("d.gguf"), scratch("e.gguf")));
}

/* A file that is cut, and one whose bytes are changed one by one: refused in a line that names it, or what it then says is written; nothing
 * else. */
static void test_broken_files(void **state) {
    (void)state;
    gguf_model made = {0};
    gguf_write(&made, "good.gguf");
    loaded_file good = load(scratch("good.gguf"));
    uint64_t refused = 0, tried = 0;
    for (uint64_t at = 0; at < good.length && at < 6000; at += at < 200 ? 1 : 13, tried++) {
        mica_error error = {MICA_OK, ""};
        good.bytes[at] = (char)~good.bytes[at];
        assert_int_equal(mica_file_replace(scratch("bad.gguf"), good.bytes, good.length, NULL), MICA_OK);
        good.bytes[at] = (char)~good.bytes[at];
        const mica_status status = mica_export_safetensors(scratch("bad.gguf"), scratch("bad"),
                                                           &(mica_export_safetensors_options){.force = true}, NULL, NULL, &error);
        assert_true(status == MICA_OK || (status == MICA_BAD_INPUT && strstr(error.message, "bad.gguf")) || strstr(error.message, "blk."));
        refused += status != MICA_OK;
        const mica_status again = mica_export_gguf(scratch("bad.gguf"), scratch("bad2.gguf"), &(mica_export_gguf_options){.force = true},
                                                   NULL, NULL, &error);
        assert_true(again == MICA_OK || again == MICA_BAD_INPUT);
    }
    for (uint64_t length = 0; length < good.length; length += 1 + good.length / 80) {
        mica_error error;
        assert_int_equal(mica_file_replace(scratch("cut.gguf"), good.bytes, length, NULL), MICA_OK);
        assert_int_equal(mica_export_safetensors(scratch("cut.gguf"), scratch("cut"), NULL, NULL, NULL, &error), MICA_BAD_INPUT);
        assert_non_null(strstr(error.message, "cut.gguf"));
        assert_false(mica_path_exists(scratch("cut")));
    }
    assert_true(refused > tried / 4);
    mica_free(good.bytes);
}

static void test_refusals(void **state) {
    (void)state;
    mica_error error;
    char *text = NULL, *json = NULL;
    gguf_model made = {0};
    mica_gguf_metadata keys = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    mica_gguf_writer *writer;
    mica_gguf_add_string(&keys, "general.architecture", "deepseek4");
    assert_int_equal(mica_gguf_layout_make(NULL, 0, &keys, 0, &layout, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_open(scratch("v4.gguf"), &layout, true, &writer, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_finish(writer, NULL), MICA_OK);
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&keys);
    assert_int_equal(mica_export_safetensors(scratch("v4.gguf"), scratch("v4"), NULL, NULL, NULL, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "deepseek4"));
    assert_false(mica_path_exists(scratch("v4")));
    gguf_write(&made, "small2.gguf");
    assert_int_equal(mica_export_safetensors(scratch("small2.gguf"), scratch("x"), &(mica_export_safetensors_options){.dtype = "f16"}, NULL,
                                             NULL, &error),
                     MICA_USAGE);
    /* without a vocabulary: said, and done */
    assert_int_equal(mica_export_safetensors(scratch("small2.gguf"), scratch("bare"), NULL, &text, &json, &error), MICA_OK);
    assert_non_null(strstr(text, "no vocabulary in the file"));
    if (validator_exists())
        assert_true(validates("export_safetensors.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
    assert_false(mica_path_exists(scratch("bare/tokenizer.json")));
    made = (gguf_model){.drop = "blk.1.ffn_up_exps.weight"};
    gguf_write(&made, "hole.gguf");
    assert_int_equal(mica_export_safetensors(scratch("hole.gguf"), scratch("hole"), NULL, NULL, NULL, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "blk.1.ffn_up_exps.weight"));
}

static void test_without_memory(void **state) {
    (void)state;
    mica_error error = {MICA_OK, ""};
    gguf_model made = {0};
    gguf_write(&made, "poor.gguf");
    char source[512], directory[512];
    snprintf(source, sizeof source, "%s", scratch("poor.gguf"));
    snprintf(directory, sizeof directory, "%s", scratch("poor"));
    const mica_export_safetensors_options options = {.threads = 1, .force = true};
    back_to(source, scratch("rich"), &options);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        no_memory_begin(&trial);
        const mica_status status = mica_export_safetensors(source, directory, &options, NULL, NULL, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
    back_to(source, directory, &options); /* over whatever the last attempt left */
    assert_true(same_bytes(scratch("poor/model.safetensors"), scratch("rich/model.safetensors")));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tensors),   cmocka_unit_test(test_blocks),
                                       cmocka_unit_test(test_config),    cmocka_unit_test(test_tokenizer),
                                       cmocka_unit_test(test_llama),     cmocka_unit_test(test_resume),
                                       cmocka_unit_test(test_full_disk), cmocka_unit_test(test_broken_files),
                                       cmocka_unit_test(test_refusals),  cmocka_unit_test(test_without_memory)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
