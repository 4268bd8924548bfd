/* operations/inspect.c: what a checkpoint is, on one screen and as JSON, from its headers alone: no tensor data is read.
 * A bare .safetensors file has no configuration: its tensors are listed. Judged by tests/operations/test_inspect.c. */
#include <mica/checkpoint.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/quantity.h"
#include "operations/inspect_gguf.h"
#include "operations/inspect_totals.h"
#include "operations/output.h"

#define SCHEMA 1
#define LISTED_MAX 40 /* groups of tensors in the text of a bare file */

void mica_string_free(char *string) {
    mica_free(string);
}

static const char *plural(uint64_t count, const char *one, const char *many) {
    return count == 1 ? one : many;
}

/* ---- text */

static void text_row(mica_text *text, const char *what, const char *how, const mica_total *total) {
    char parameters[MICA_QUANTITY_BYTES], bytes[MICA_QUANTITY_BYTES];
    mica_text_printf(text, "  %-24s %-11s %9" PRIu64 " %11s %11s\n", what, how, total->count,
                     mica_count_show(total->parameters, parameters), mica_bytes_show(total->bytes, bytes));
}

static void text_layers(mica_text *text, const mica_config *config, const mica_totals *totals) {
    if (!config->n_routed_experts) {
        mica_text_printf(text, "layers        %" PRIu64 ", dense\n", config->num_hidden_layers);
        return;
    }
    mica_text_printf(text, "layers        %" PRIu64 ": %" PRIu64 " dense, %" PRIu64 " with %" PRIu64 " experts, %" PRIu64 " a token",
                     config->num_hidden_layers, config->num_hidden_layers - totals->moe_layers, totals->moe_layers,
                     config->n_routed_experts, config->num_experts_per_tok);
    if (config->n_shared_experts)
        mica_text_printf(text, ", and %" PRIu64 " shared", config->n_shared_experts);
    mica_text_puts(text, "\n");
}

static void text_quantisation(mica_text *text, const mica_config *config) {
    if (config->quantisation == MICA_QUANTISATION_FP8) {
        mica_text_printf(text, "quantisation  fp8, blocks of %" PRIu64 " x %" PRIu64 "\n", config->weight_block_rows,
                         config->weight_block_columns);
    } else if (config->quantisation == MICA_QUANTISATION_INT4) {
        mica_text_printf(text, "quantisation  int4, groups of %" PRIu64 "\n", config->group_size);
    } else if (config->quantisation == MICA_QUANTISATION_BLOCKS) {
        mica_text_puts(text, "quantisation  ggml blocks, of a type for each tensor\n");
    } else {
        mica_text_puts(text, "quantisation  none\n");
    }
}

static void text_configuration(mica_text *text, const mica_config *config, const mica_totals *totals) {
    mica_text_printf(text, "model         %s", config->model_type);
    if (strcmp(config->model_type, config->architecture->family) != 0)
        mica_text_printf(text, " (family %s)", config->architecture->family);
    mica_text_puts(text, "\n");
    text_layers(text, config, totals);
    mica_text_printf(text, "sizes         hidden %" PRIu64, config->hidden_size);
    if (config->intermediate_size)
        mica_text_printf(text, ", dense width %" PRIu64, config->intermediate_size);
    if (config->moe_intermediate_size)
        mica_text_printf(text, ", expert width %" PRIu64, config->moe_intermediate_size);
    mica_text_printf(text, ", vocabulary %" PRIu64 ", %" PRIu64 " heads\n", config->vocab_size, config->num_attention_heads);
    text_quantisation(text, config);
}

static void text_warnings(mica_text *text, const mica_model *model) {
    if (model->warning_count)
        mica_text_puts(text, "\nwarnings\n");
    for (uint64_t i = 0; i < model->warning_count; i++)
        mica_text_printf(text, "  %s\n", model->warnings[i]);
}

static void text_model(mica_text *text, const mica_model *model, const mica_totals *totals) {
    const mica_tensor_source *source = model->source;
    char parameters[MICA_QUANTITY_BYTES], bytes[MICA_QUANTITY_BYTES];
    mica_text_printf(text, "%s\n\n", source->path);
    text_configuration(text, &model->config, totals);
    mica_text_printf(text, "parameters    %s", mica_count_show(totals->all.parameters, parameters));
    mica_text_printf(text, ", %s in %" PRIu32 " %s\n", mica_bytes_show(totals->all.bytes, bytes), source->shard_count,
                     plural(source->shard_count, "file", "files"));
    mica_text_printf(text, "tensors       %" PRIu64 ": %" PRIu64 " used, %" PRIu64 " ignored by a rule, %" PRIu64 " unknown\n\n",
                     source->tensor_count, model->used_count, model->ignored_count, model->unknown_count);
    mica_text_printf(text, "  %-24s %-11s %9s %11s %11s\n", "weights", "stored as", "count", "parameters", "bytes");
    for (uint64_t i = 0; i < totals->role_count; i++)
        text_row(text, totals->roles[i].name, totals->roles[i].detail, &totals->roles[i]);
    for (uint64_t i = 0; i < totals->rule_count; i++)
        text_row(text, totals->rules[i].name, "ignored", &totals->rules[i]);
    if (totals->unknown.count)
        text_row(text, "unknown", "", &totals->unknown);
    text_warnings(text, model);
}

static mica_status text_file(mica_text *text, const mica_tensor_source *source, const mica_totals *totals, mica_error *error) {
    char bytes[MICA_QUANTITY_BYTES];
    mica_tensor_group *groups = NULL;
    uint64_t count = 0;
    mica_status status = mica_tensor_groups(source, &groups, &count, error);
    if (status != MICA_OK)
        return status;
    mica_text_printf(text, "%s\n\na single file: %" PRIu64 " %s, %s; no configuration, so nothing is known of their meaning\n\n",
                     source->path, source->tensor_count, plural(source->tensor_count, "tensor", "tensors"),
                     mica_bytes_show(totals->all.bytes, bytes));
    for (uint64_t i = 0; i < count && i < LISTED_MAX; i++) {
        char shape[160];
        const mica_tensor *tensor = groups[i].first;
        mica_text_printf(text, "  %9" PRIu64 "  %-9s %-16s %s\n", groups[i].count, mica_dtype_name(tensor->dtype),
                         mica_shape_show(tensor->rank, tensor->shape, shape, sizeof shape), groups[i].name);
    }
    if (count > LISTED_MAX)
        mica_text_printf(text, "  and %" PRIu64 " more kinds\n", count - LISTED_MAX);
    mica_tensor_groups_free(groups, count);
    return MICA_OK;
}

/* ---- JSON */

static void json_total(mica_json_writer *writer, const mica_total *total, const char *name_key, const char *detail_key) {
    mica_json_open_object(writer, NULL);
    mica_json_string(writer, name_key, total->name);
    if (detail_key)
        mica_json_string(writer, detail_key, total->detail);
    mica_json_u64(writer, "count", total->count);
    mica_json_u64(writer, "parameters", total->parameters);
    mica_json_u64(writer, "bytes", total->bytes);
    mica_json_close_object(writer);
}

static void json_totals(mica_json_writer *writer, const char *key, const mica_total *totals, uint64_t count, const char *name_key,
                        const char *detail_key) {
    mica_json_open_array(writer, key);
    for (uint64_t i = 0; i < count; i++)
        json_total(writer, &totals[i], name_key, detail_key);
    mica_json_close_array(writer);
}

static void json_quantisation(mica_json_writer *writer, const mica_config *config) {
    if (config->quantisation == MICA_QUANTISATION_NONE) {
        mica_json_null(writer, "quantisation");
        return;
    }
    bool fp8 = config->quantisation == MICA_QUANTISATION_FP8;
    mica_json_open_object(writer, "quantisation");
    if (config->quantisation == MICA_QUANTISATION_BLOCKS) {
        mica_json_string(writer, "method", "blocks");
        mica_json_close_object(writer);
        return;
    }
    mica_json_string(writer, "method", fp8 ? "fp8" : "int4");
    mica_json_open_row(writer, "block");
    mica_json_u64(writer, NULL, fp8 ? config->weight_block_rows : 1);
    mica_json_u64(writer, NULL, fp8 ? config->weight_block_columns : config->group_size);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

static void json_configuration(mica_json_writer *writer, const mica_config *config, const mica_totals *totals) {
    mica_json_open_object(writer, "model");
    mica_json_string(writer, "model_type", config->model_type);
    mica_json_string(writer, "family", config->architecture->family);
    mica_json_u64(writer, "layers", config->num_hidden_layers);
    mica_json_u64(writer, "moe_layers", totals->moe_layers);
    mica_json_u64(writer, "dense_layers", config->num_hidden_layers - totals->moe_layers);
    mica_json_u64(writer, "hidden_size", config->hidden_size);
    mica_json_u64(writer, "intermediate_size", config->intermediate_size);
    mica_json_u64(writer, "moe_intermediate_size", config->moe_intermediate_size);
    mica_json_u64(writer, "vocab_size", config->vocab_size);
    mica_json_u64(writer, "attention_heads", config->num_attention_heads);
    mica_json_u64(writer, "routed_experts", config->n_routed_experts);
    mica_json_u64(writer, "shared_experts", config->n_shared_experts);
    mica_json_u64(writer, "experts_per_token", config->num_experts_per_tok);
    mica_json_bool(writer, "tied_embeddings", config->tie_word_embeddings);
    json_quantisation(writer, config);
    mica_json_close_object(writer);
}

static void json_tensor_list(mica_json_writer *writer, const mica_tensor_source *source) {
    mica_json_open_array(writer, "list");
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        const mica_tensor *tensor = &source->tensors[i];
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "name", tensor->name);
        mica_json_string(writer, "dtype", mica_dtype_name(tensor->dtype));
        mica_json_open_row(writer, "shape");
        for (uint32_t d = 0; d < tensor->rank; d++)
            mica_json_u64(writer, NULL, tensor->shape[d]);
        mica_json_close_array(writer);
        mica_json_u64(writer, "bytes", tensor->bytes);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static void json_source(mica_json_writer *writer, const mica_tensor_source *source, const mica_totals *totals) {
    mica_json_u64(writer, "bytes", totals->all.bytes);
    mica_json_open_array(writer, "shards");
    for (uint32_t i = 0; i < source->shard_count; i++) {
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "name", source->shards[i].name);
        mica_json_u64(writer, "bytes", mica_file_bytes(source->shards[i].file));
        mica_json_u64(writer, "tensors", totals->shard_tensors[i]);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
    json_totals(writer, "dtypes", totals->dtypes, totals->dtype_count, "dtype", NULL);
}

static void json_report(mica_json_writer *writer, const mica_tensor_source *source, const mica_model *model, const mica_totals *totals) {
    mica_json_begin(writer);
    mica_json_open_object(writer, NULL);
    mica_json_u64(writer, "schema", SCHEMA);
    mica_json_string(writer, "kind", model ? "checkpoint" : "file");
    mica_json_string(writer, "path", source->path);
    json_source(writer, source, totals);
    if (mica_gguf_of_source(source))
        mica_inspect_gguf_json(writer, mica_gguf_of_source(source));
    mica_json_open_object(writer, "tensors");
    mica_json_u64(writer, "total", source->tensor_count);
    if (model) {
        mica_json_u64(writer, "used", model->used_count);
        mica_json_u64(writer, "ignored", model->ignored_count);
        mica_json_u64(writer, "unknown", model->unknown_count);
    } else {
        json_tensor_list(writer, source);
    }
    mica_json_close_object(writer);
    if (model) {
        json_configuration(writer, &model->config, totals);
        mica_json_u64(writer, "parameters", totals->all.parameters);
        json_totals(writer, "encodings", totals->encodings, totals->encoding_count, "encoding", NULL);
        json_totals(writer, "roles", totals->roles, totals->role_count, "role", "stored_as");
        json_totals(writer, "ignored", totals->rules, totals->rule_count, "rule", NULL);
    }
    mica_json_open_array(writer, "warnings");
    for (uint64_t i = 0; model && i < model->warning_count; i++)
        mica_json_string(writer, NULL, model->warnings[i]);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

/* ---- */

static mica_status report(const mica_tensor_source *source, const mica_model *model, char **text, char **json, mica_error *error) {
    mica_totals totals;
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    mica_status status = mica_totals_count(source, model, &totals, error);
    if (status != MICA_OK)
        return status;
    if (model)
        text_model(&words, model, &totals);
    else
        status = text_file(&words, source, &totals, error);
    const mica_gguf *gguf = mica_gguf_of_source(source);
    if (gguf)
        mica_inspect_gguf_text(&words, gguf);
    json_report(&writer, source, model, &totals);
    status = mica_output_give(status, &words, &writer, text, json, error);
    mica_totals_release(&totals);
    return status;
}

mica_status mica_inspect(const char *path, const mica_inspect_options *options, char **text, char **json, mica_error *error) {
    mica_tensor_source *source = NULL;
    mica_status status = mica_tensor_source_open(path, &source, error);
    if (status != MICA_OK)
        return status;
    if (!mica_source_is_model(source)) {
        status = report(source, NULL, text, json, error);
        mica_tensor_source_close(source);
        return status;
    }
    mica_model_options model_options = {options && options->strict};
    mica_model *model = NULL;
    status = mica_model_open_source(source, &model_options, &model, error);
    if (status == MICA_OK)
        status = report(model->source, model, text, json, error);
    mica_model_close(model);
    return status;
}
