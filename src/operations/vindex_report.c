/* operations/vindex_report.c: gate_vectors_index.json, phase2_router_svd.json, moe_config.json, source_tensors.json.
 * Nothing in them depends on where the source lies or how it is cut into shards. Keys: docs/formats.md.
 * Judged by tests/operations/test_index.c and tests/interop/numpy_lines.py. */
#include "operations/vindex_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "numerics/spectrum.h"
#include "operations/source_identity.h"

void mica_report_open(mica_json_writer *writer) {
    mica_json_open_object(writer, NULL);
    mica_json_string(writer, "format", MICA_VINDEX_FORMAT);
    mica_json_u64(writer, "format_version", MICA_VINDEX_FORMAT_VERSION);
}

static void open_number(mica_json_writer *writer, uint64_t number) {
    char key[24];
    snprintf(key, sizeof key, "%llu", (unsigned long long)number);
    mica_json_open_object(writer, key);
}

/* ---- gate_vectors_index.json */

static bool is_dense_model(const mica_index_plan *plan) {
    return plan->model->config.n_routed_experts == 0;
}

static mica_index_kind kind_of_group(const mica_index_plan *plan, mica_vindex_group group) {
    if (group == MICA_VINDEX_SHARED)
        return MICA_INDEX_SHARED;
    return group == MICA_VINDEX_DENSE || is_dense_model(plan) ? MICA_INDEX_DENSE : MICA_INDEX_ROUTED;
}

static void write_model_config(const mica_index_plan *plan, mica_json_writer *writer) {
    const mica_config *config = &plan->model->config;
    mica_json_open_object(writer, "model_config");
    mica_json_string(writer, "model_type", config->model_type);
    mica_json_u64(writer, "num_hidden_layers", config->num_hidden_layers);
    mica_json_open_object(writer, "moe");
    mica_json_u64(writer, "n_routed_experts", plan->layout.group[MICA_VINDEX_MAIN].experts); /* of gate_vectors.bin: 1 in a dense model */
    mica_json_u64(writer, "hidden_size", config->hidden_size);
    mica_json_u64(writer, "moe_intermediate_size", is_dense_model(plan) ? config->intermediate_size : config->moe_intermediate_size);
    mica_json_u64(writer, "n_shared_experts", config->n_shared_experts);
    mica_json_u64(writer, "num_experts_per_tok", is_dense_model(plan) ? 1 : config->num_experts_per_tok);
    mica_json_close_object(writer);
    mica_json_close_object(writer);
}

static void write_shape(mica_json_writer *writer, const char *key, const uint64_t *shape, uint32_t rank) {
    mica_json_open_row(writer, key);
    for (uint32_t i = 0; i < rank; i++)
        mica_json_u64(writer, NULL, shape[i]);
    mica_json_close_array(writer);
}

/* Every .bin file: its element type and its shape. */
static void write_files(const mica_index_plan *plan, mica_json_writer *writer) {
    mica_json_open_object(writer, "files");
    for (int g = 0; g < MICA_VINDEX_GROUP_COUNT; g++)
        for (int m = 0; m < MICA_VINDEX_MEMBER_COUNT; m++) {
            const mica_vindex_group group = (mica_vindex_group)g;
            const mica_vindex_member member = (mica_vindex_member)m;
            if (!mica_vindex_has_file(&plan->layout, group, member))
                continue;
            const uint64_t last = member >= MICA_VINDEX_FULL_GATE ? plan->layout.group[group].full[member - MICA_VINDEX_FULL_GATE]
                                                                  : plan->layout.group[group].features;
            const uint64_t shape[4] = {plan->layout.group[group].layers, plan->layout.group[group].experts, last,
                                       plan->layout.group[group].hidden};
            mica_json_open_object(writer, mica_vindex_file_name(group, member));
            mica_json_string(writer, "dtype", member >= MICA_VINDEX_FULL_GATE ? "float64" : "float32");
            write_shape(writer, "shape", shape, member == MICA_VINDEX_VECTORS ? 4 : 3);
            mica_json_close_object(writer);
        }
    mica_json_close_object(writer);
}

static mica_status write_layer(const mica_report *report, mica_vindex_group group, uint64_t slot, mica_json_writer *writer,
                               mica_error *error) {
    const mica_index_plan *plan = report->plan;
    const uint64_t layer = plan->group_layers[group][slot];
    const uint64_t shape[3] = {plan->layout.group[group].experts, plan->layout.group[group].features, plan->layout.group[group].hidden};
    mica_report_group members;
    mica_status status = mica_report_group_make(report, layer, kind_of_group(plan, group), MICA_GATE, &members, error);
    if (status != MICA_OK)
        return status;
    mica_summary summary;
    status = mica_report_summarise(report, &members, mica_statistic_find("var64"), &summary, error);
    open_number(writer, layer);
    mica_json_string(writer, "file", mica_vindex_file_name(group, MICA_VINDEX_VECTORS));
    mica_json_u64(writer, "file_offset", mica_vindex_offset(&plan->layout, group, MICA_VINDEX_VECTORS, slot, 0));
    write_shape(writer, "shape", shape, 3);
    mica_json_string(writer, "values_file", mica_vindex_file_name(group, MICA_VINDEX_VALUES));
    mica_json_u64(writer, "values_offset", mica_vindex_offset(&plan->layout, group, MICA_VINDEX_VALUES, slot, 0));
    mica_json_double(writer, "median_var64", summary.median);
    mica_json_double(writer, "q25_var64", summary.q25);
    mica_json_double(writer, "q75_var64", summary.q75);
    mica_json_double(writer, "null_var64", members.noise_var64);
    if (summary.count == 0)
        mica_json_string(writer, "reason", "no expert has a finite value");
    mica_json_close_object(writer);
    mica_report_group_release(&members);
    return status;
}

mica_status mica_report_index(const mica_report *report, mica_json_writer *writer, mica_error *error) {
    static const char *const keys[MICA_VINDEX_GROUP_COUNT] = {"layers", "dense_layers", "shared_layers"};
    const mica_index_plan *plan = report->plan;
    mica_report_open(writer);
    mica_json_u64(writer, "num_feats", plan->layout.group[MICA_VINDEX_MAIN].features);
    write_model_config(plan, writer);
    write_files(plan, writer);
    mica_status status = MICA_OK;
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++) {
        mica_json_open_object(writer, keys[group]);
        for (uint64_t slot = 0; status == MICA_OK && slot < plan->layout.group[group].layers; slot++)
            status = write_layer(report, (mica_vindex_group)group, slot, writer, error);
        mica_json_close_object(writer);
    }
    mica_json_close_object(writer);
    return status;
}

/* ---- phase2_router_svd.json */

static void write_top_k(const mica_index_record *record, const double *spectrum, mica_json_writer *writer) {
    static const uint64_t tops[] = {1, 2, 4, 8, 16, 32, 64};
    mica_json_open_object(writer, "topk_variance");
    for (size_t i = 0; i < sizeof tops / sizeof tops[0]; i++) {
        char key[24];
        snprintf(key, sizeof key, "%llu", (unsigned long long)tops[i]);
        double share = NAN;
        if (record->frobenius > 0)
            share = tops[i] >= record->value_count
                        ? 1.0
                        : mica_spectrum_var(spectrum, record->value_count, tops[i], record->frobenius * record->frobenius);
        mica_json_double(writer, key, share);
    }
    mica_json_close_object(writer);
}

static void write_router(const mica_report *report, const mica_report_group *group, mica_json_writer *writer) {
    static const char *const names[] = {"effective_rank", "s0",         "s1",         "s0_over_s1", "stable_rank", "participation_ratio",
                                        "frobenius",      "noise_edge", "above_edge", "rank",       "residual",    "orthonormality",
                                        "value_error"};
    const mica_index_outcome *outcome = &report->outcomes[group->units[0]];
    const mica_statistic_input input = mica_report_input(report, group, 0);
    open_number(writer, group->layer);
    mica_json_u64(writer, "rows", input.unit->weight->rows);
    mica_json_u64(writer, "columns", input.unit->weight->columns);
    write_top_k(&outcome->record, outcome->values, writer);
    mica_json_double(writer, "null_var64", group->noise_var64);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const mica_statistic *statistic = mica_statistic_find(names[i]);
        if (statistic->count)
            mica_json_u64(writer, statistic->name, (uint64_t)statistic->value(&input));
        else
            mica_json_double(writer, statistic->name, statistic->value(&input));
    }
    if (!(outcome->record.frobenius > 0))
        mica_json_string(writer, "reason", "the matrix is zero");
    mica_json_string(writer, "route", mica_svd_route_name((mica_svd_route)outcome->record.route));
    mica_json_string(writer, "why_dense", *outcome->record.why_dense ? outcome->record.why_dense : NULL);
    mica_json_open_row(writer, "singular_values");
    for (uint32_t i = 0; i < outcome->record.value_count; i++)
        mica_json_double(writer, NULL, outcome->values[i]);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

mica_status mica_report_phase2(const mica_report *report, mica_json_writer *writer, mica_error *error) {
    mica_report_open(writer);
    mica_json_open_object(writer, "layers");
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < report->plan->layer_count; i++) {
        mica_report_group group;
        status = mica_report_group_make(report, report->plan->layers[i], MICA_INDEX_ROUTER, MICA_GATE, &group, error);
        if (status == MICA_OK && group.count > 0)
            write_router(report, &group, writer);
        if (status == MICA_OK)
            mica_report_group_release(&group);
    }
    mica_json_close_object(writer);
    mica_json_close_object(writer);
    return status;
}

/* ---- moe_config.json */

static void write_numbers(const mica_config *config, mica_json_writer *writer) {
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"hidden_size", config->hidden_size},
        {"intermediate_size", config->intermediate_size},
        {"moe_intermediate_size", config->moe_intermediate_size},
        {"vocab_size", config->vocab_size},
        {"num_hidden_layers", config->num_hidden_layers},
        {"num_nextn_predict_layers", config->num_nextn_predict_layers},
        {"n_routed_experts", config->n_routed_experts},
        {"n_shared_experts", config->n_shared_experts},
        {"num_experts_per_tok", config->num_experts_per_tok},
        {"first_k_dense_replace", config->first_k_dense_replace},
        {"moe_layer_freq", config->moe_layer_freq},
        {"n_group", config->n_group},
        {"topk_group", config->topk_group},
        {"num_hash_layers", config->num_hash_layers},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        mica_json_u64(writer, numbers[i].name, numbers[i].value);
    mica_json_string(writer, "scoring_func", *config->scoring_func ? config->scoring_func : NULL);
    mica_json_string(writer, "topk_method", *config->topk_method ? config->topk_method : NULL);
    mica_json_bool(writer, "norm_topk_prob", config->norm_topk_prob);
    mica_json_double(writer, "routed_scaling_factor", config->routed_scaling_factor);
}

static void write_layer_types(const mica_model *model, mica_json_writer *writer) {
    mica_json_open_row(writer, "layer_types");
    for (uint64_t i = 0; i < model->config.num_hidden_layers; i++)
        mica_json_string(writer, NULL, model->layers[i].moe ? "moe" : "dense");
    mica_json_close_array(writer);
}

/* The first matrix of each kind and projection: how such a one is named and stored. */
static void write_weights(const mica_report *report, mica_json_writer *writer) {
    bool seen[MICA_INDEX_KIND_COUNT][MICA_PROJECTION_COUNT] = {{false}};
    mica_json_open_array(writer, "weights");
    for (uint64_t i = 0; i < report->plan->unit_count; i++) {
        const mica_index_unit *unit = &report->plan->units[i];
        const mica_weight *weight = unit->weight;
        if (seen[unit->kind][unit->projection])
            continue;
        seen[unit->kind][unit->projection] = true;
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "kind", mica_index_kind_name((mica_index_kind)unit->kind));
        mica_json_string(writer, "projection",
                         unit->kind == MICA_INDEX_ROUTER ? NULL : mica_projection_name((mica_projection)unit->projection));
        mica_json_string(writer, "first", weight->name);
        mica_json_string(writer, "encoding", mica_encoding_name(weight->encoding));
        mica_json_string(writer, "dtype", mica_dtype_name(weight->data->dtype));
        mica_json_string(writer, "scale_dtype", weight->scale ? mica_dtype_name(weight->scale->dtype) : NULL);
        write_shape(writer, "shape", (const uint64_t[]){weight->rows, weight->columns}, 2);
        if (weight->scale)
            write_shape(writer, "block", (const uint64_t[]){weight->block_rows, weight->block_columns}, 2);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static void write_accounts(const mica_model *model, mica_json_writer *writer) {
    mica_json_open_object(writer, "tensors");
    mica_json_u64(writer, "used", model->used_count);
    mica_json_u64(writer, "ignored", model->ignored_count);
    mica_json_u64(writer, "unknown", model->unknown_count);
    mica_json_close_object(writer);
}

mica_status mica_report_config(const mica_report *report, mica_json_writer *writer, mica_error *error) {
    static const char *const quantisations[] = {"none", "fp8", "int4", "blocks"};
    const mica_model *model = report->plan->model;
    mica_report_open(writer);
    mica_json_string(writer, "model_type", model->config.model_type);
    mica_json_string(writer, "family", model->config.architecture->family);
    mica_json_string(writer, "quantisation", quantisations[model->config.quantisation]);
    write_numbers(&model->config, writer);
    write_layer_types(model, writer);
    write_weights(report, writer);
    write_accounts(model, writer);
    mica_index_write_options(writer, report->plan);
    const mica_status status = mica_source_write_identity(writer, report->plan->model->source, error);
    mica_json_string(writer, "arithmetic", mica_svd_arithmetic());
    mica_json_close_object(writer);
    return status;
}

/* ---- source_tensors.json */

typedef struct tensor_row {
    const mica_tensor *tensor;
    const uint8_t *digest;
} tensor_row;

static int compare_rows(const void *a, const void *b) {
    return strcmp(((const tensor_row *)a)->tensor->name, ((const tensor_row *)b)->tensor->name);
}

mica_status mica_report_tensors(const mica_report *report, mica_json_writer *writer, mica_error *error) {
    tensor_row *rows = mica_calloc(report->plan->unit_count * MICA_INDEX_TENSORS_MAX + 1, sizeof *rows);
    if (!rows)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the tensors' hashes");
    uint64_t count = 0;
    for (uint64_t i = 0; i < report->plan->unit_count; i++) {
        const mica_weight *weight = report->plan->units[i].weight;
        const mica_tensor *const tensors[MICA_INDEX_TENSORS_MAX] = {weight->data, weight->scale, weight->shape};
        for (uint32_t t = 0; t < MICA_INDEX_TENSORS_MAX; t++)
            if (tensors[t])
                rows[count++] = (tensor_row){tensors[t], report->outcomes[i].record.digests[t]};
    }
    qsort(rows, count, sizeof *rows, compare_rows);
    mica_report_open(writer);
    mica_json_string(writer, "hash", "SHA-256 over the line \"DTYPE d0 d1 ...\\n\" and the tensor's bytes");
    mica_json_open_object(writer, "tensors");
    for (uint64_t i = 0; i < count; i++) {
        char hex[MICA_SHA256_HEX_BYTES];
        mica_sha256_hex(rows[i].digest, hex);
        mica_json_open_object(writer, rows[i].tensor->name);
        mica_json_string(writer, "dtype", mica_dtype_name(rows[i].tensor->dtype));
        write_shape(writer, "shape", rows[i].tensor->shape, rows[i].tensor->rank);
        mica_json_string(writer, "sha256", hex);
        mica_json_close_object(writer);
    }
    mica_json_close_object(writer);
    mica_json_close_object(writer);
    mica_free(rows);
    return MICA_OK;
}
