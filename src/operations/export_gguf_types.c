/* operations/export_gguf_types.c: a plan's types, and with them its sizes and the units of the stream. All of it is known before a weight
 * is read. Judged by tests/operations/test_export_gguf.c. */
#include <string.h>

#include "base/memory.h"
#include "numerics/quantise_covariance.h"
#include "operations/export_gguf.h"
#include "operations/export_rules.h"

/* ---- types */

/* The type nearest to how a weight is stored; it holds every value but fp8's, which Q8_0 holds to half a step of its blocks. */
static mica_dtype source_type(const mica_weight *weight) {
    switch (weight->encoding) {
    case MICA_ENCODING_FP8_BLOCK: return MICA_Q8_0;
    case MICA_ENCODING_INT4_GROUP: return MICA_Q4_0;
    case MICA_ENCODING_MXFP4: return MICA_MXFP4;
    case MICA_ENCODING_BLOCK:
    case MICA_ENCODING_PLAIN: break;
    }
    const mica_dtype dtype = weight->data->dtype;
    if (dtype == MICA_F8_E4M3 || dtype == MICA_F8_E5M2)
        return MICA_F16;
    return dtype == MICA_BF16 || dtype == MICA_F16 || mica_dtype_is_block(dtype) ? dtype : MICA_F32;
}

static void describe(const mica_export_tensor *tensor, mica_mixture_tensor *seen) {
    *seen = (mica_mixture_tensor){.name = tensor->name,
                                  .layer = tensor->layer < 0 ? 0 : (uint64_t)tensor->layer,
                                  .rank = tensor->rank,
                                  .columns = tensor->columns,
                                  .matrices = tensor->matrices};
}

/* general.file_type of a file that follows no mixture: that of the type which most bytes are of. */
static uint32_t common_file_type(const mica_export_plan *plan) {
    uint64_t bytes[MICA_DTYPE_COUNT] = {0};
    int most = MICA_F32;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        uint64_t row = 0;
        if (mica_dtype_run_bytes(plan->tensors[i].dtype, plan->tensors[i].columns, &row))
            bytes[plan->tensors[i].dtype] += row * plan->tensors[i].rows * plan->tensors[i].matrices;
    }
    for (int i = 0; i < MICA_DTYPE_COUNT; i++)
        if (bytes[i] > bytes[most])
            most = i;
    for (int mixture = MICA_MIXTURE_COUNT - 1; mixture >= 0; mixture--)
        if (mica_mixture_base((mica_mixture)mixture) == (mica_dtype)most)
            return mica_mixture_file_type((mica_mixture)mixture);
    return 0;
}

mica_status mica_export_plan_importance(mica_export_plan *plan, const char *path, mica_error *error) {
    if (!path)
        return MICA_OK;
    mica_status status = mica_imatrix_open(path, &plan->imatrix, error);
    uint64_t found = 0;
    for (uint64_t i = 0; status == MICA_OK && i < plan->tensor_count; i++) {
        mica_export_tensor *tensor = &plan->tensors[i];
        tensor->importance = tensor->fixed ? NULL : mica_imatrix_find(plan->imatrix, tensor->name);
        found += tensor->importance != NULL;
        if (tensor->importance && tensor->importance->elements != tensor->columns * tensor->matrices)
            status = mica_fail(error, MICA_BAD_INPUT,
                               "%s: %s: expected %llu columns x %llu matrices, got %llu values: it is of another model", path, tensor->name,
                               (unsigned long long)tensor->columns, (unsigned long long)tensor->matrices,
                               (unsigned long long)tensor->importance->elements);
    }
    if (status == MICA_OK && found == 0)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected entries for tensors of this model, got none (its first is %s)", path,
                           plan->imatrix->entries[0].name);
    plan->facts.importance = status == MICA_OK;
    return status;
}

/* What the command line says wins over the file. */
static mica_status choose_defaults(mica_export_plan *plan, const mica_export_gguf_options *options, const mica_export_rules *rules,
                                   mica_error *error) {
    const char *type = options->type ? options->type : rules->type, *effort = options->effort ? options->effort : rules->effort;
    plan->mixture = MICA_MIXTURE_SOURCE;
    plan->effort = MICA_EFFORT_DEFAULT;
    if (type && !mica_mixture_parse(type, &plan->mixture))
        return mica_fail(error, options->type ? MICA_USAGE : MICA_BAD_INPUT, "%s: expected one of %s, got '%s'",
                         options->type ? "--type" : rules->name, mica_mixture_list(), type);
    if (effort && !mica_effort_parse(effort, &plan->effort))
        return mica_fail(error, options->effort ? MICA_USAGE : MICA_BAD_INPUT, "%s: expected fast, default or max, got '%s'",
                         options->effort ? "--effort" : rules->name, effort);
    plan->trellis = rules->trellis || plan->effort == MICA_EFFORT_MAX;
    return MICA_OK;
}

/* Room for a type of each expert; all the mixture's so far. */
static mica_status list_types(mica_export_tensor *tensor, mica_error *error) {
    tensor->types = mica_reallocarray(NULL, tensor->matrices, sizeof *tensor->types);
    for (uint64_t i = 0; tensor->types && i < tensor->matrices; i++)
        tensor->types[i] = tensor->wanted;
    return tensor->types
               ? MICA_OK
               : mica_fail(error, MICA_NO_MEMORY, "out of memory for the types of %llu experts", (unsigned long long)tensor->matrices);
}

/* Who reads the file: "llama.cpp" (NULL), or "mica", for which experts of one tensor may have several types. */
static mica_status choose_reader(mica_export_plan *plan, const char *compat, mica_error *error) {
    if (!compat || strcmp(compat, "llama.cpp") == 0)
        return MICA_OK;
    if (strcmp(compat, "mica") != 0)
        return mica_fail(error, MICA_USAGE, "--compat: expected llama.cpp or mica, got '%s'", compat);
    if (plan->gguf)
        return mica_fail(error, MICA_USAGE,
                         "--compat mica: expected a checkpoint, got a GGUF file, whose tensors stay as they are grouped");
    plan->groups = !plan->vision_blocks;
    return MICA_OK;
}

mica_status mica_export_plan_types(mica_export_plan *plan, const mica_export_gguf_options *options, mica_export_rules *rules,
                                   mica_error *error) {
    mica_status status = choose_defaults(plan, options, rules, error);
    if (status == MICA_OK)
        status = choose_reader(plan, options->compat, error);
    for (uint64_t i = 0; status == MICA_OK && i < plan->tensor_count; i++) {
        mica_export_tensor *tensor = &plan->tensors[i];
        mica_mixture_tensor seen;
        describe(tensor, &seen);
        if (tensor->fixed)
            continue;
        tensor->wanted = !mica_mixture_allows(&seen)                ? MICA_F32
                         : plan->mixture == MICA_MIXTURE_SOURCE ? source_type(tensor->weights[0])
                                                                : mica_mixture_choose(plan->mixture, &plan->facts, &seen);
        tensor->reason = tensor->mixture = mica_mixture_name(plan->mixture);
        if (plan->groups && tensor->form == MICA_GGUF_EXPERTS)
            status = list_types(tensor, error);
        if (status == MICA_OK)
            status = mica_export_rules_choose(rules, tensor, tensor->wanted, tensor->types, &tensor->wanted, &tensor->reason, error);
        tensor->dtype = mica_mixture_fit(tensor->wanted, tensor->columns);
    }
    if (status == MICA_OK)
        status = mica_export_rules_check_used(rules, error);
    if (status == MICA_OK)
        plan->file_type = plan->mixture == MICA_MIXTURE_SOURCE ? common_file_type(plan) : mica_mixture_file_type(plan->mixture);
    return status;
}

/* ---- sizes */

static uint64_t source_row_bytes(const mica_weight *weight) {
    return weight->rows ? weight->data->bytes / weight->rows : weight->data->bytes;
}

static uint64_t row_bytes(const mica_export_tensor *tensor) {
    uint64_t bytes = 0;
    (void)mica_dtype_run_bytes(tensor->dtype, tensor->columns, &bytes); /* the type was chosen to fit, sizes were checked as files' are */
    return bytes;
}

/* Rows that cannot be parted: those under one row of scales, those of one head. */
static uint64_t granule(const mica_export_plan *plan, const mica_export_tensor *tensor) {
    const mica_config *config = &plan->model->config;
    switch (tensor->form) {
    case MICA_GGUF_KEY_PART:
    case MICA_GGUF_VALUE_PART: return tensor->rows;
    case MICA_GGUF_QUERY_PAIRS: return tensor->rows / config->num_attention_heads ? tensor->rows / config->num_attention_heads : 1;
    case MICA_GGUF_FUSED_TURNED: return tensor->rank == 1 ? 1 : tensor->rows / 3 / plan->vision_heads;
    case MICA_GGUF_QUERY_THIRD:
    case MICA_GGUF_KEY_THIRD: return tensor->rank == 1 ? 1 : tensor->rows / plan->vision_heads;
    case MICA_GGUF_KEY_PAIRS: return tensor->rows / config->num_key_value_heads ? tensor->rows / config->num_key_value_heads : 1;
    default: break;
    }
    return tensor->weights && tensor->weights[0]->encoding == MICA_ENCODING_FP8_BLOCK ? tensor->weights[0]->block_rows : 1;
}

static void cut_into_slabs(mica_export_plan *plan, mica_export_tensor *tensor) {
    uint64_t cost = row_bytes(tensor);
    if (tensor->weights && source_row_bytes(tensor->weights[0]) > cost)
        cost = source_row_bytes(tensor->weights[0]);
    const uint64_t unit = granule(plan, tensor);
    uint64_t rows = cost ? MICA_EXPORT_SLAB_BYTES / cost / unit * unit : tensor->rows;
    rows = rows < unit ? unit : rows;
    tensor->slab_rows = rows < tensor->rows ? rows : tensor->rows;
    tensor->slabs = tensor->slab_rows ? (tensor->rows + tensor->slab_rows - 1) / tensor->slab_rows : 1;
    tensor->first_unit = plan->unit_count;
    plan->unit_count += tensor->slabs * tensor->matrices;
}

/* Some of its matrices may have one and some not: experts that saw few tokens. */
static bool has_covariance(const mica_export_plan *plan, const mica_export_tensor *tensor) {
    uint64_t slot;
    bool has = false;
    if (!plan->trellis || !plan->imatrix || !tensor->weights || tensor->form == MICA_GGUF_KEY_PART ||
        !mica_quantise_has_covariance(tensor->dtype))
        return false;
    for (uint64_t i = 0; !has && i < (tensor->form == MICA_GGUF_EXPERTS ? tensor->matrices : 1); i++) {
        const int64_t expert = tensor->form == MICA_GGUF_EXPERTS ? (int64_t)mica_export_expert(tensor, i) : -1;
        const mica_imatrix_covariance *found = mica_imatrix_find_covariance(plan->imatrix, mica_export_known_name(tensor), expert, &slot);
        has = found && found->columns == tensor->columns;
    }
    return has;
}

uint64_t mica_export_plan_covariance_columns(const mica_export_plan *plan) {
    uint64_t columns = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        if (plan->tensors[i].covariance && plan->tensors[i].columns > columns)
            columns = plan->tensors[i].columns;
    return columns;
}

void mica_export_plan_units(mica_export_plan *plan) {
    plan->unit_count = plan->bytes = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        mica_export_tensor *tensor = &plan->tensors[i];
        tensor->covariance = has_covariance(plan, tensor);
        tensor->bytes = row_bytes(tensor) * tensor->rows * tensor->matrices;
        plan->bytes += tensor->bytes;
        cut_into_slabs(plan, tensor);
    }
}

/* ---- units */

static const mica_export_tensor *tensor_of_unit(const mica_export_plan *plan, uint64_t number) {
    uint64_t low = 0, high = plan->tensor_count;
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (plan->tensors[middle].first_unit <= number)
            low = middle;
        else
            high = middle;
    }
    return &plan->tensors[low];
}

mica_export_unit mica_export_unit_at(const mica_export_plan *plan, uint64_t number) {
    const mica_config *config = &plan->model->config;
    const mica_export_tensor *tensor = tensor_of_unit(plan, number);
    const uint64_t place = number - tensor->first_unit, bytes = row_bytes(tensor);
    mica_export_unit unit = {.tensor = tensor, .matrix = place / tensor->slabs, .row = place % tensor->slabs * tensor->slab_rows};
    unit.rows = tensor->rows - unit.row < tensor->slab_rows ? tensor->rows - unit.row : tensor->slab_rows;
    unit.position = (unit.matrix * tensor->rows + unit.row) * bytes;
    unit.bytes = unit.rows * bytes;
    if (tensor->values)
        return unit;
    unit.weight = tensor->weights[tensor->weight_count > 1 ? unit.matrix : 0];
    unit.source_row = unit.row;
    unit.source_rows = unit.rows;
    const uint64_t head = config->qk_nope_head_dim + config->v_head_dim;
    if (tensor->form == MICA_GGUF_KEY_PART) {
        unit.source_row = unit.matrix * head;
        unit.source_rows = config->qk_nope_head_dim;
    } else if (tensor->form == MICA_GGUF_VALUE_PART) {
        unit.source_row = unit.matrix * head + config->qk_nope_head_dim;
    } else if (tensor->form == MICA_GGUF_KEY_THIRD || tensor->form == MICA_GGUF_VALUE_THIRD) {
        unit.source_row = tensor->rank == 1 ? 0 : unit.row + tensor->rows * (tensor->form == MICA_GGUF_KEY_THIRD ? 1 : 2);
    }
    const uint64_t block = unit.weight->encoding == MICA_ENCODING_FP8_BLOCK ? unit.weight->block_rows : 1;
    unit.source_rows += unit.source_row % block;
    unit.source_row -= unit.source_row % block;
    return unit;
}
