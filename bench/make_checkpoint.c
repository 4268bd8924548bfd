/* make_checkpoint: a synthetic checkpoint of real dimensions, whole and valid, for the programs that measure: Kimi-K2's or DeepSeek-V4's
 * configuration with few layers, experts and words. Names and shapes are those of the model layer's tables; tensors lie in a shard as the
 * safetensors library orders them (wide types first, then by name: scales far from their weights). A tensor's bytes depend on the seed
 * and its name only, not on threads or machine. Strips of 128 rows are in memory, no matrix; config.json is written last: where it
 * stands, all stands. --real-experts leaves holes for most matrices: a whole model's size on a small disk. Values: synthetic.c. */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "base/threads.h"
#include "bench.h"
#include "model/config.h"
#include "synthetic.h"

enum { TILE = SYNTHETIC_TILE, GROUP = SYNTHETIC_GROUP, NAME_BYTES = 160 };
enum { DATA, SCALE, SHAPE, PARTS_MAX }; /* of a weight */

/* --- what is asked for --- */

static struct {
    const char *directory, *family, *encoding, *spectrum;
    uint64_t layers, experts, hidden, width, vocabulary, seed, shard_bytes, real_experts;
    bool dense;
} options = {.family = "kimi_k2", .spectrum = "spiked", .layers = 1, .experts = 32, .width = 2048, .vocabulary = 1024, .seed = 1,
             .shard_bytes = 1u << 30, .real_experts = UINT64_MAX};

static const char kimi_k2_config[] =
    "{\n  \"architectures\": [\"DeepseekV3ForCausalLM\"],\n  \"model_type\": \"kimi_k2\",\n"
    "  \"hidden_size\": %" PRIu64 ",\n  \"moe_intermediate_size\": %" PRIu64 ",\n  \"n_routed_experts\": %" PRIu64 ",\n"
    "  \"num_experts_per_tok\": %" PRIu64 ",\n  \"num_hidden_layers\": %" PRIu64 ",\n  \"first_k_dense_replace\": %d,\n"
    "  \"vocab_size\": %" PRIu64 ",\n"
    "  \"attention_bias\": false, \"attention_dropout\": 0.0, \"aux_loss_alpha\": 0.001, \"bos_token_id\": 0, \"eos_token_id\": 1,\n"
    "  \"hidden_act\": \"silu\", \"initializer_range\": 0.02, \"intermediate_size\": 18432, \"kv_lora_rank\": 512,\n"
    "  \"max_position_embeddings\": 131072, \"moe_layer_freq\": 1, \"n_group\": 1, \"n_shared_experts\": 1, \"norm_topk_prob\": true,\n"
    "  \"num_attention_heads\": 64, \"num_key_value_heads\": 64, \"num_nextn_predict_layers\": 0, \"pretraining_tp\": 1,\n"
    "  \"q_lora_rank\": 1536, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-06, \"rope_theta\": 50000.0,\n"
    "  \"routed_scaling_factor\": 2.827,\n"
    "  \"rope_scaling\": {\"beta_fast\": 1.0, \"beta_slow\": 1.0, \"factor\": 32.0, \"mscale\": 1.0, \"mscale_all_dim\": 1.0,\n"
    "    \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"},\n"
    "  \"scoring_func\": \"sigmoid\", \"seq_aux\": true, \"tie_word_embeddings\": false, \"topk_group\": 1,\n"
    "  \"topk_method\": \"noaux_tc\", \"torch_dtype\": \"bfloat16\", \"use_cache\": true, \"v_head_dim\": 128";

/* Of Kimi-VL's language model's sizes, but for the vocabulary and the number of layers: plain queries, two shared experts. */
static const char deepseek_v3_config[] =
    "{\n  \"architectures\": [\"DeepseekV3ForCausalLM\"],\n  \"model_type\": \"deepseek_v3\",\n"
    "  \"hidden_size\": %" PRIu64 ",\n  \"moe_intermediate_size\": %" PRIu64 ",\n  \"n_routed_experts\": %" PRIu64 ",\n"
    "  \"num_experts_per_tok\": %" PRIu64 ",\n  \"num_hidden_layers\": %" PRIu64 ",\n  \"first_k_dense_replace\": %d,\n"
    "  \"vocab_size\": %" PRIu64 ",\n"
    "  \"attention_bias\": false, \"bos_token_id\": 0, \"eos_token_id\": 1, \"hidden_act\": \"silu\", \"intermediate_size\": 11264,\n"
    "  \"kv_lora_rank\": 512, \"max_position_embeddings\": 131072, \"moe_layer_freq\": 1, \"n_group\": 1, \"n_shared_experts\": 2,\n"
    "  \"norm_topk_prob\": true, \"num_attention_heads\": 16, \"num_key_value_heads\": 16, \"num_nextn_predict_layers\": 0,\n"
    "  \"q_lora_rank\": null, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-06, \"rope_theta\": 800000.0,\n"
    "  \"routed_scaling_factor\": 2.446, \"rope_scaling\": null, \"scoring_func\": \"sigmoid\", \"tie_word_embeddings\": false,\n"
    "  \"topk_group\": 1, \"topk_method\": \"noaux_tc\", \"torch_dtype\": \"bfloat16\", \"use_cache\": true, \"v_head_dim\": 128";

static const char deepseek_v4_config[] =
    "{\n  \"architectures\": [\"DeepseekV4ForCausalLM\"],\n  \"model_type\": \"deepseek_v4\",\n"
    "  \"hidden_size\": %" PRIu64 ",\n  \"moe_intermediate_size\": %" PRIu64 ",\n  \"n_routed_experts\": %" PRIu64 ",\n"
    "  \"num_experts_per_tok\": %" PRIu64 ",\n  \"num_hidden_layers\": %" PRIu64 ",\n  \"num_nextn_predict_layers\": %d,\n"
    "  \"vocab_size\": %" PRIu64 ",\n"
    "  \"attention_bias\": false, \"bos_token_id\": 0, \"compress_rope_theta\": 160000, \"eos_token_id\": 1, \"hc_eps\": 1e-06,\n"
    "  \"hc_mult\": 4, \"hc_sinkhorn_iters\": 20, \"head_dim\": 512, \"hidden_act\": \"silu\", \"index_head_dim\": 128,\n"
    "  \"index_n_heads\": 64, \"index_topk\": 512, \"max_position_embeddings\": 1048576, \"n_shared_experts\": 1,\n"
    "  \"norm_topk_prob\": true, \"num_attention_heads\": 64, \"num_hash_layers\": 3, \"num_key_value_heads\": 1, \"o_groups\": 8,\n"
    "  \"o_lora_rank\": 1024, \"q_lora_rank\": 1024, \"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-06, \"rope_theta\": 10000,\n"
    "  \"routed_scaling_factor\": 1.5,\n"
    "  \"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 16, \"original_max_position_embeddings\": 65536,\n"
    "    \"type\": \"yarn\"},\n"
    "  \"scoring_func\": \"sqrtsoftplus\", \"sliding_window\": 128, \"swiglu_limit\": 10.0, \"tie_word_embeddings\": false,\n"
    "  \"topk_method\": \"noaux_tc\", \"torch_dtype\": \"bfloat16\", \"use_cache\": true";

static const char fp8_config[] =
    "\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]";
static const char int4_config[] =
    "\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", \"quantization_status\": \"compressed\",\n"
    "    \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"weights\": {\"group_size\": 32, \"num_bits\": 4,"
    " \"strategy\": \"group\", \"symmetric\": true, \"type\": \"int\"}}},\n"
    "    \"ignore\": [\"lm_head\", \"re:.*self_attn.*\", \"re:.*shared_experts.*\", \"re:.*mlp\\\\.(gate|up|gate_up|down)_proj.*\"]";

/* How the experts are stored, how the other large matrices, and what the configuration says of it. */
typedef struct storage {
    const char *family, *encoding;
    mica_encoding experts, others;
    const char *quantisation, *more;
} storage;

static const storage storages[] = { /* a family's first is its default */
    {"kimi_k2", "fp8", MICA_ENCODING_FP8_BLOCK, MICA_ENCODING_FP8_BLOCK, fp8_config, ""},
    {"kimi_k2", "bf16", MICA_ENCODING_PLAIN, MICA_ENCODING_PLAIN, NULL, ""},
    {"kimi_k2", "int4", MICA_ENCODING_INT4_GROUP, MICA_ENCODING_PLAIN, int4_config, ""},
    {"deepseek_v3", "bf16", MICA_ENCODING_PLAIN, MICA_ENCODING_PLAIN, NULL, ""},
    {"deepseek_v3", "fp8", MICA_ENCODING_FP8_BLOCK, MICA_ENCODING_FP8_BLOCK, fp8_config, ""},
    {"deepseek_v3", "int4", MICA_ENCODING_INT4_GROUP, MICA_ENCODING_PLAIN, int4_config, ""},
    {"deepseek_v4", "mxfp4", MICA_ENCODING_MXFP4, MICA_ENCODING_FP8_BLOCK, fp8_config, ", \"scale_fmt\": \"ue8m0\""},
    {"deepseek_v4", "fp8", MICA_ENCODING_FP8_BLOCK, MICA_ENCODING_FP8_BLOCK, fp8_config, ", \"scale_fmt\": \"ue8m0\""},
    {"deepseek_v4", "bf16", MICA_ENCODING_PLAIN, MICA_ENCODING_PLAIN, NULL, ""},
};
static const storage *chosen;
static bool is_v4;

static const synthetic_spectrum *spectrum;

/* --- the plan: tensors, shards, offsets --- */

typedef struct part { /* a tensor of a file */
    char name[NAME_BYTES];
    mica_dtype dtype;
    uint32_t rank;
    uint64_t shape[2], bytes, shard, offset; /* offset: of the data section, then of the file */
} part;

typedef struct weight { /* what one thread generates: a matrix, its scales, its shape */
    const mica_tensor_row *row;
    mica_encoding encoding;
    uint64_t layer, expert, rows, columns, bytes, shard, seed;
    part *parts[PARTS_MAX]; /* NULL: has none */
} weight;

static mica_config config;
static weight *weights;
static part **parts; /* [part_count], sorted as they lie */
static uint64_t weight_count, part_count, shard_count;
static int *shards;

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static mica_dtype plain_dtype(const mica_tensor_row *row) {
    if (row->role == MICA_ROLE_HASH_TABLE) return MICA_I64;
    const bool wide = row->role == MICA_ROLE_OTHER || row->role == MICA_ROLE_ROUTER_BIAS || ends_with(row->pattern, "attn_sink") ||
                      ends_with(row->pattern, ".ape");
    return wide ? MICA_F32 : MICA_BF16;
}

static mica_encoding encoding_of(const mica_tensor_row *row) {
    if (row->role == MICA_ROLE_EXPERT) return chosen->experts;
    const bool large = row->shape[1] && (row->role == MICA_ROLE_ATTENTION || row->role == MICA_ROLE_SHARED_EXPERT ||
                                         row->role == MICA_ROLE_DENSE);
    const bool kept = plain_dtype(row) != MICA_BF16 || strstr(row->pattern, "compressor") || strstr(row->pattern, "weights_proj");
    return large && !kept ? chosen->others : MICA_ENCODING_PLAIN;
}

static part *add_part(weight *to, int kind, const char *name, const char *suffix, mica_dtype dtype, uint64_t rows, uint64_t columns) {
    part *made = to->parts[kind] = need(mica_calloc(1, sizeof *made));
    size_t stem = strlen(name);
    if (suffix) stem = (size_t)(strrchr(name, '.') - name) + 1;
    const int length = snprintf(made->name, sizeof made->name, "%.*s%s", (int)stem, name, suffix ? suffix : "");
    if (length < 0 || length >= (int)sizeof made->name) fail("%s: too long", name);
    made->dtype = dtype;
    made->rank = columns ? 2 : 1;
    made->shape[0] = rows;
    made->shape[1] = columns;
    made->bytes = rows * (columns ? columns : 1) * mica_dtype_bytes(dtype);
    to->bytes += made->bytes;
    part_count++;
    return made;
}

static void add_weight(const mica_tensor_row *row, const char *name, uint64_t layer, uint64_t expert) {
    weight *made = &weights[weight_count++];
    const uint64_t rows = row->shape[0](&config, layer), columns = row->shape[1] ? row->shape[1](&config, layer) : 0;
    *made = (weight){.row = row, .encoding = encoding_of(row), .layer = layer, .expert = expert, .rows = columns ? rows : 1,
                      .columns = columns ? columns : rows, .seed = synthetic_seed(options.seed, name)};
    if (made->encoding == MICA_ENCODING_FP8_BLOCK) {
        add_part(made, DATA, name, NULL, MICA_F8_E4M3, rows, columns);
        add_part(made, SCALE, name, config.architecture->expert_scale, is_v4 ? MICA_F8_E8M0 : MICA_F32, (rows + TILE - 1) / TILE,
                 (columns + TILE - 1) / TILE);
    } else if (made->encoding == MICA_ENCODING_MXFP4) {
        add_part(made, DATA, name, NULL, MICA_I8, rows, columns / 2);
        add_part(made, SCALE, name, "scale", MICA_F8_E8M0, rows, columns / GROUP);
    } else if (made->encoding == MICA_ENCODING_INT4_GROUP) {
        add_part(made, DATA, name, "weight_packed", MICA_I32, rows, columns / 8);
        add_part(made, SCALE, name, "weight_scale", MICA_BF16, rows, columns / GROUP);
        add_part(made, SHAPE, name, "weight_shape", MICA_I32, 2, 0);
    } else {
        add_part(made, DATA, name, NULL, plain_dtype(row), rows, columns);
    }
}

static void show_name(char name[NAME_BYTES], const char *pattern, uint64_t layer, uint64_t expert) {
    size_t length = (size_t)snprintf(name, NAME_BYTES, "%s", config.architecture->prefix);
    for (; *pattern && length + 24 < NAME_BYTES; pattern++) {
        if (*pattern != '{') {
            name[length++] = *pattern;
            continue;
        }
        length += (size_t)snprintf(name + length, NAME_BYTES - length, "%" PRIu64, pattern[1] == 'L' ? layer : expert);
        pattern += 2;
    }
    name[length] = '\0';
}

/* The weights of a layer, or (in_layers false) those of no layer. */
static void add_rows(bool in_layers, uint64_t layer) {
    for (const mica_tensor_row *row = config.architecture->rows; row->pattern; row++) {
        if ((strstr(row->pattern, "{L}") != NULL) != in_layers || (row->need && row->need(&config, layer) != MICA_NEED_REQUIRED)) continue;
        const uint64_t experts = strstr(row->pattern, "{E}") ? config.n_routed_experts : 1;
        for (uint64_t expert = 0; expert < experts; expert++) {
            char name[NAME_BYTES];
            show_name(name, row->pattern, layer, expert);
            add_weight(row, name, layer, expert);
        }
    }
}

/* Experts one after the other, and not all their gates first, as the rows would give them. */
static int compare_weights(const void *left, const void *right) {
    const weight *a = left, *b = right;
    return strcmp(a->parts[DATA]->name, b->parts[DATA]->name);
}

static int compare_parts(const void *left, const void *right) {
    const part *a = *(part *const *)left, *b = *(part *const *)right;
    if (a->shard != b->shard) return a->shard < b->shard ? -1 : 1;
    const int wider = (int)mica_dtype_bytes(b->dtype) - (int)mica_dtype_bytes(a->dtype);
    return wider ? wider : strcmp(a->name, b->name);
}

static void make_plan(void) {
    uint64_t rows = 0, used = 0;
    for (const mica_tensor_row *row = config.architecture->rows; row->pattern; row++) rows++;
    weights = need(mica_calloc(rows * (1 + config.num_hidden_layers * (1 + config.n_routed_experts)), sizeof *weights));
    add_rows(false, 0);
    for (uint64_t layer = 0; layer < config.num_hidden_layers; layer++) {
        const uint64_t first = weight_count;
        add_rows(true, layer);
        qsort(weights + first, weight_count - first, sizeof *weights, compare_weights);
    }
    parts = need(mica_calloc(part_count, sizeof *parts));
    uint64_t count = 0, offset = 0;
    for (uint64_t i = 0; i < weight_count; i++) {
        if (used > 0 && used + weights[i].bytes > options.shard_bytes) {
            shard_count++;
            used = 0;
        }
        used += weights[i].bytes;
        weights[i].shard = shard_count;
        for (int kind = 0; kind < PARTS_MAX; kind++) {
            if (!weights[i].parts[kind]) continue;
            weights[i].parts[kind]->shard = shard_count;
            parts[count++] = weights[i].parts[kind];
        }
    }
    shard_count++;
    qsort(parts, part_count, sizeof *parts, compare_parts);
    for (uint64_t i = 0; i < part_count; i++) {
        if (i > 0 && parts[i]->shard != parts[i - 1]->shard) offset = 0;
        parts[i]->offset = offset;
        offset += parts[i]->bytes;
    }
}

/* --- files --- */

static void write_whole(int fd, const void *bytes, uint64_t length, uint64_t offset) {
    while (length > 0) {
        const ssize_t wrote = pwrite(fd, bytes, length, (off_t)offset);
        if (wrote <= 0) fail("%s: cannot write: %m", options.directory);
        bytes = (const char *)bytes + wrote;
        length -= (uint64_t)wrote;
        offset += (uint64_t)wrote;
    }
}

static void shard_name(char name[64], uint64_t shard) {
    snprintf(name, 64, "model-%05" PRIu64 "-of-%05" PRIu64 ".safetensors", shard + 1, shard_count);
}

static void write_text(const char *name, mica_text *text) {
    char *path = path_of(options.directory, name);
    if (mica_text_failed(text)) fail("out of memory");
    check(mica_file_replace(path, text->bytes, text->length, &error));
    mica_text_release(text);
    mica_free(path);
}

/* Writes the header of parts first … end - 1 and moves their offsets behind it. */
static void begin_shard(uint64_t first, uint64_t end) {
    mica_text header = MICA_TEXT_INIT;
    mica_text_puts(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint64_t i = first; i < end; i++) {
        mica_text_printf(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRIu64, parts[i]->name, mica_dtype_name(parts[i]->dtype),
                         parts[i]->shape[0]);
        if (parts[i]->rank > 1) mica_text_printf(&header, ",%" PRIu64, parts[i]->shape[1]);
        mica_text_printf(&header, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", parts[i]->offset, parts[i]->offset + parts[i]->bytes);
    }
    mica_text_puts(&header, "}");
    while (header.length % 8) mica_text_puts(&header, " ");
    if (mica_text_failed(&header)) fail("out of memory");
    char name[64];
    shard_name(name, parts[first]->shard);
    char *path = path_of(options.directory, name);
    const int fd = shards[parts[first]->shard] = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) fail("%s: %m", path);
    const uint64_t length = header.length;
    write_whole(fd, &length, 8, 0);
    write_whole(fd, header.bytes, length, 8);
    for (uint64_t i = first; i < end; i++) parts[i]->offset += 8 + length;
    const part *last = parts[end - 1];
    if (ftruncate(fd, (off_t)(last->offset + last->bytes)) != 0) fail("%s: %m", path); /* what is not written stays a hole */
    mica_text_release(&header);
    mica_free(path);
}

static void write_index(void) {
    mica_text index = MICA_TEXT_INIT;
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < part_count; i++) bytes += parts[i]->bytes;
    mica_text_printf(&index, "{\n  \"metadata\": {\"total_size\": %" PRIu64 "},\n  \"weight_map\": {", bytes);
    for (uint64_t i = 0; i < part_count; i++) {
        char name[64];
        shard_name(name, parts[i]->shard);
        mica_text_printf(&index, "%s\n    \"%s\": \"%s\"", i ? "," : "", parts[i]->name, name);
    }
    mica_text_puts(&index, "\n  }\n}\n");
    write_text("model.safetensors.index.json", &index);
    printf("%s: %" PRIu64 " tensors in %" PRIu64 " shard%s, %.3f GB\n", options.directory, part_count, shard_count,
           shard_count == 1 ? "" : "s", 1e-9 * (double)bytes);
}

/* --- weights --- */

/* The experts of each word, all different. */
static void write_table(const weight *of) {
    const uint64_t count = of->rows * of->columns;
    int64_t *table = need(mica_calloc(count, sizeof *table));
    for (uint64_t i = 0; i < count; i++) table[i] = (int64_t)((i / of->columns * 7 + i % of->columns) % config.n_routed_experts);
    write_whole(shards[of->shard], table, count * sizeof *table, of->parts[DATA]->offset);
    mica_free(table);
}

static void write_strip(const weight *of, const synthetic_strip *strip, uint64_t row, uint32_t rows) {
    const part *data = of->parts[DATA], *scale = of->parts[SCALE];
    const uint64_t row_bytes = data->bytes / of->rows;
    write_whole(shards[of->shard], strip->codes, rows * row_bytes, data->offset + row * row_bytes);
    if (!scale) return;
    const uint64_t scale_bytes = scale->bytes / scale->shape[0];
    const bool blocks = of->encoding == MICA_ENCODING_FP8_BLOCK; /* a strip has one row of them */
    write_whole(shards[of->shard], strip->scales, (blocks ? 1 : rows) * scale_bytes,
                scale->offset + (blocks ? row / TILE : row) * scale_bytes);
}

/* Norms are about 1, and a router's correction is small beside what the token says: otherwise every token would choose the same experts. */
static float settle(mica_role role, float value) {
    if (role == MICA_ROLE_NORM || role == MICA_ROLE_FINAL_NORM) return 1 + value;
    return role == MICA_ROLE_ROUTER_BIAS ? value / 16 : value;
}

static void write_matrix(const weight *of) {
    const mica_role role = of->row->role;
    const bool of_mlp = role == MICA_ROLE_EXPERT || role == MICA_ROLE_SHARED_EXPERT || role == MICA_ROLE_DENSE;
    const synthetic_form form = {.encoding = of->encoding, .dtype = of->parts[DATA]->dtype, .columns = of->columns,
                                 .scale_dtype = of->parts[SCALE] ? of->parts[SCALE]->dtype : MICA_F32};
    synthetic_source source;
    if (!synthetic_source_init(&source, of->seed, of->rows, of->columns, of_mlp ? spectrum : NULL)) fail("out of memory");
    synthetic_strip *strip = need(mica_alloc_aligned(sizeof *strip));
    strip->codes = need(mica_calloc(TILE * of->columns, 4));
    strip->scales = need(mica_calloc(TILE * (of->columns / GROUP + 1), 4));
    for (uint64_t row = 0; row < of->rows; row += TILE) {
        const uint32_t rows = of->rows - row < TILE ? (uint32_t)(of->rows - row) : TILE;
        for (uint64_t tile = 0; tile * TILE < of->columns; tile++) {
            const uint64_t left = of->columns - tile * TILE;
            for (uint32_t i = 0; i < rows; i++) {
                synthetic_source_row(&source, row + i, tile, strip->tile[i]);
                for (uint32_t j = 0; j < TILE; j++) strip->tile[i][j] = settle(role, strip->tile[i][j]);
            }
            synthetic_encode(strip, &form, tile, rows, left < TILE ? (uint32_t)left : TILE);
        }
        write_strip(of, strip, row, rows);
    }
    mica_free(strip->codes);
    mica_free(strip->scales);
    mica_free_aligned(strip);
    synthetic_source_release(&source);
}

/* With --real-experts, what `mica index --dry-run` times is real: the first layer of experts, up to one, its router, its shared expert. */
static bool is_hole(const weight *of) {
    const mica_role role = of->row->role;
    if (options.real_experts == UINT64_MAX) return false;
    if (of->layer != (uint64_t)options.dense) return true;
    if (role == MICA_ROLE_EXPERT) return of->expert >= options.real_experts;
    return role != MICA_ROLE_SHARED_EXPERT && role != MICA_ROLE_ROUTER && role != MICA_ROLE_ROUTER_BIAS;
}

static void write_weights(void *next, uint32_t thread) {
    (void)thread;
    for (uint64_t i; (i = atomic_fetch_add((_Atomic uint64_t *)next, 1)) < weight_count;) {
        const weight *of = &weights[i];
        if (of->parts[SHAPE]) /* of a hole too: zeros would contradict the header */
            write_whole(shards[of->shard], (const int32_t[2]){(int32_t)of->rows, (int32_t)of->columns}, 8, of->parts[SHAPE]->offset);
        if (is_hole(of)) continue;
        if (of->row->role == MICA_ROLE_HASH_TABLE) write_table(of);
        else write_matrix(of);
    }
}

/* --- the program --- */

static void parse_options(int count, char **arguments) {
    enum { FAMILY = 1, ENCODING, SPECTRUM, LAYERS, DENSE, EXPERTS, HIDDEN, WIDTH, VOCABULARY, SEED, SHARD, REAL };
    static const struct option known[] = {
        {"family", 1, 0, FAMILY}, {"encoding", 1, 0, ENCODING}, {"spectrum", 1, 0, SPECTRUM}, {"layers", 1, 0, LAYERS},
        {"dense", 0, 0, DENSE}, {"experts", 1, 0, EXPERTS}, {"hidden", 1, 0, HIDDEN}, {"width", 1, 0, WIDTH},
        {"vocabulary", 1, 0, VOCABULARY}, {"seed", 1, 0, SEED}, {"shard-bytes", 1, 0, SHARD},
        {"real-experts", 1, 0, REAL}, {0}};
    static uint64_t *const numbers[] = {[LAYERS] = &options.layers, [EXPERTS] = &options.experts, [HIDDEN] = &options.hidden,
                                        [WIDTH] = &options.width, [VOCABULARY] = &options.vocabulary, [SEED] = &options.seed,
                                        [SHARD] = &options.shard_bytes, [REAL] = &options.real_experts};
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;) {
        if (option == FAMILY) options.family = optarg;
        else if (option == ENCODING) options.encoding = optarg;
        else if (option == SPECTRUM) options.spectrum = optarg;
        else if (option == DENSE) options.dense = true;
        else if (option == '?') exit(2);
        else {
            char *end;
            *numbers[option] = strtoull(optarg, &end, 10);
            if (*end || !*optarg || *optarg == '-') fail("expected a number, got %s", optarg);
        }
    }
    if (optind + 1 != count)
        fail("expected [--family kimi_k2|deepseek_v3|deepseek_v4] [--encoding fp8|bf16|int4|mxfp4] [--spectrum flat|spiked|power] [--layers N]\n"
             "  [--dense] [--experts N] [--hidden N] [--width N] [--vocabulary N] [--seed N] [--shard-bytes N] [--real-experts N]"
             " DIRECTORY\n"
             "--real-experts N: values only for the first N experts of the first layer with experts, its router and its shared expert.\n"
             "  All else is holes (zeros, scales too), which inspect does not look at, nor index --dry-run if N > 4 x threads; every\n"
             "  shard is open at once: give a shard of a whole model some 17 GB.");
    options.directory = arguments[optind];
}

static void check_options(void) {
    for (size_t i = 0; !chosen && i < sizeof storages / sizeof *storages; i++)
        if (strcmp(storages[i].family, options.family) == 0 && (!options.encoding || strcmp(storages[i].encoding, options.encoding) == 0))
            chosen = &storages[i];
    spectrum = synthetic_spectrum_find(options.spectrum);
    is_v4 = strcmp(options.family, "deepseek_v4") == 0;
    bool is_v3 = strcmp(options.family, "deepseek_v3") == 0;
    if (!options.hidden) options.hidden = is_v4 ? 4096 : is_v3 ? 2048 : 7168;
    if (!chosen || !spectrum)
        fail("family %s, encoding %s, spectrum %s: not known together", options.family, options.encoding ? options.encoding : "(default)",
             options.spectrum);
    if (options.hidden % GROUP || options.width % GROUP) fail("--hidden and --width: expected multiples of %d", GROUP);
    if (options.dense && is_v4) fail("--dense: every layer of deepseek_v4 is a mixture");
}

static void make_config(mica_text *text) {
    bool is_v3 = strcmp(options.family, "deepseek_v3") == 0;
    const uint64_t most = is_v4 || is_v3 ? 6 : 8;
    mica_text_printf(text, is_v4 ? deepseek_v4_config : is_v3 ? deepseek_v3_config : kimi_k2_config, options.hidden, options.width, options.experts,
                     options.experts < most ? options.experts : most, options.layers + options.dense, (int)options.dense,
                     options.vocabulary);
    if (is_v4) {
        mica_text_puts(text, ",\n  \"compress_ratios\": [");
        for (uint64_t layer = 0; layer < options.layers; layer++)
            mica_text_printf(text, "%s%d", layer ? ", " : "", layer < 2 ? 0 : layer % 2 ? 128 : 4);
        mica_text_puts(text, "]");
    }
    if (chosen->quantisation) mica_text_printf(text, ",\n  \"quantization_config\": {%s%s}", chosen->quantisation, chosen->more);
    mica_text_puts(text, "\n}\n");
    if (mica_text_failed(text)) fail("out of memory");
    check(mica_config_parse("config.json", text->bytes, text->length, &config, &error));
}

int main(int count, char **arguments) {
    parse_options(count, arguments);
    check_options();
    mica_text text = MICA_TEXT_INIT;
    make_config(&text);
    make_plan();
    char **names = NULL;
    uint64_t name_count = 0;
    check(mica_directory_create(options.directory, &error));
    check(mica_directory_list(options.directory, &names, &name_count, &error));
    if (name_count > 0) fail("%s: expected nothing or an empty directory", options.directory);
    shards = need(mica_calloc(shard_count, sizeof *shards));
    for (uint64_t first = 0, end; first < part_count; first = end) {
        for (end = first; end < part_count && parts[end]->shard == parts[first]->shard;) end++;
        begin_shard(first, end);
    }
    _Atomic uint64_t next = 0;
    mica_threads *threads;
    check(mica_threads_start(mica_thread_count_default(), write_weights, NULL, (void *)&next, &threads, &error));
    mica_threads_join(threads);
    for (uint64_t i = 0; i < shard_count; i++)
        if (fsync(shards[i]) != 0 || close(shards[i]) != 0) fail("%s: cannot write: %m", options.directory);
    write_index();
    write_text("config.json", &text);
    return 0;
}
