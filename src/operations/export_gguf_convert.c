/* operations/export_gguf_convert.c: one unit from the bytes of the checkpoint to the bytes of the GGUF file: decode rows in strips, put
 * them in the tensor's order, encode them. Copies where the two are the same bytes. Refuses values that are not finite, naming tensor and
 * position. Invariant: a unit's bytes depend on its weight and the plan alone. Judged by tests/operations/test_export_gguf.c. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "numerics/encode.h"
#include "numerics/quantise.h"
#include "numerics/repack.h"
#include "operations/export_covariance.h"
#include "operations/export_gguf.h"

#define COVARIANCE_ROWS 128u /* at least so many at once: the factors are read once for all */
#define STRIP_FLOATS ((uint64_t)128 << 10) /* 512 KiB: stays in a core's second cache */

struct mica_export_converter {
    const mica_export_plan *plan;
    float *strip, *turned; /* [strip_floats] each */
    uint64_t strip_floats;
    float *importance; /* of the columns of the unit's matrix, where the tensor has any */
    const mica_covariance *covariance; /* of the unit's input; NULL: not used */
};

/* Rows that are decoded at once; a KEY_PART is turned round whole. */
static uint64_t strip_rows(const mica_export_tensor *tensor) {
    const uint64_t rows = tensor->columns ? STRIP_FLOATS / tensor->columns : 1, least = tensor->covariance ? COVARIANCE_ROWS : 1;
    return rows < least ? least : rows;
}

mica_status mica_export_converter_create(const mica_export_plan *plan, mica_export_converter **converter, mica_error *error) {
    uint64_t floats = STRIP_FLOATS, turned = 0, columns = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        if (strip_rows(tensor) * tensor->columns > floats)
            floats = strip_rows(tensor) * tensor->columns;
        if (tensor->importance && tensor->columns > columns)
            columns = tensor->columns;
        if (tensor->form == MICA_GGUF_KEY_PART && tensor->rows * tensor->columns > turned)
            turned = tensor->rows * tensor->columns;
        if ((tensor->form == MICA_GGUF_QUERY_PAIRS || tensor->form == MICA_GGUF_FUSED_TURNED || tensor->form == MICA_GGUF_QUERY_THIRD) &&
            tensor->rank == 1 && tensor->columns > turned)
            turned = tensor->columns;
    }
    if (turned > floats)
        floats = turned;
    mica_export_converter *made = mica_calloc(1, sizeof *made);
    if (made)
        *made = (mica_export_converter){plan, mica_reallocarray(NULL, floats, sizeof(float)),
                                        turned ? mica_reallocarray(NULL, turned, sizeof(float)) : NULL, floats,
                                        columns ? mica_reallocarray(NULL, columns, sizeof(float)) : NULL, NULL};
    if (!made || !made->strip || (turned && !made->turned) || (columns && !made->importance)) {
        mica_export_converter_free(made);
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a strip of %llu values", (unsigned long long)floats);
    }
    *converter = made;
    return MICA_OK;
}

void mica_export_converter_free(mica_export_converter *converter) {
    if (!converter)
        return;
    mica_free(converter->strip);
    mica_free(converter->turned);
    mica_free(converter->importance);
    mica_free(converter);
}

uint64_t mica_export_output_bytes_max(const mica_export_plan *plan) {
    uint64_t most = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        const mica_export_unit unit = mica_export_unit_at(plan, plan->tensors[i].first_unit);
        most = unit.bytes > most ? unit.bytes : most;
    }
    return most;
}

/* ---- the pieces */

/* The matrix of the rows that were read. */
static mica_status matrix_of(const mica_export_plan *plan, const mica_export_unit *unit, const uint8_t *const *data, mica_matrix *matrix,
                             mica_error *error) {
    const mica_weight *weight = unit->weight;
    uint32_t next = 1;
    const uint8_t *scale = weight->scale ? data[next++] : NULL, *shape = weight->shape ? data[next++] : NULL;
    const mica_status status = mica_weight_matrix(plan->model, weight, data[0], scale, shape, matrix, error);
    matrix->rows = unit->source_rows;
    return status;
}

/* Finite sums of products with 0 are 0; anything else is not. */
static bool all_finite(const float *values, uint64_t count) {
    float sums[16] = {0};
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++)
            sums[lane] += values[i + (uint64_t)lane] * 0.0f;
    for (; i < count; i++)
        sums[0] += values[i] * 0.0f;
    float sum = 0;
    for (int lane = 0; lane < 16; lane++)
        sum += sums[lane];
    return sum == 0;
}

static mica_status check_finite(const mica_export_unit *unit, const float *values, uint64_t source_row, uint64_t rows, uint64_t columns,
                                mica_error *error) {
    if (all_finite(values, rows * columns))
        return MICA_OK;
    uint64_t at = 0;
    while (isfinite(values[at]))
        at++;
    return mica_fail(error, MICA_BAD_INPUT, "%s: expected finite, got %s at [%llu,%llu]", unit->weight->name,
                     isnan(values[at])  ? "nan"
                     : values[at] > 0 ? "inf"
                                      : "-inf",
                     (unsigned long long)(source_row + at / columns), (unsigned long long)(at % columns));
}

/* Reads the unit's row of the importance matrix. */
static mica_status read_importance(mica_export_converter *converter, const mica_export_unit *unit, mica_error *error) {
    const mica_export_tensor *tensor = unit->tensor;
    if (!tensor->importance || !mica_dtype_is_block(tensor->dtype))
        return MICA_OK;
    return mica_imatrix_read(converter->plan->imatrix, tensor->importance, mica_export_experts(tensor),
                             mica_export_expert(tensor, unit->matrix), tensor->columns, converter->importance,
                             error);
}

/* The factors for the unit's input, where its tensor has them and this matrix too. */
static mica_status acquire_covariance(mica_export_converter *converter, const mica_export_unit *unit, mica_error *error) {
    const mica_export_tensor *tensor = unit->tensor;
    const mica_export_plan *plan = converter->plan;
    uint64_t slot;
    if (!tensor->covariance || !plan->factors)
        return MICA_OK;
    const int64_t expert = tensor->form == MICA_GGUF_EXPERTS ? (int64_t)mica_export_expert(tensor, unit->matrix) : -1;
    const mica_imatrix_covariance *found = mica_imatrix_find_covariance(plan->imatrix, mica_export_known_name(tensor), expert, &slot);
    if (!found || found->columns != tensor->columns)
        return MICA_OK;
    return mica_export_factors_acquire(plan->factors, found, slot, &converter->covariance, error);
}

static mica_quantise_options quantise_options(const mica_export_converter *converter, const mica_export_tensor *tensor) {
    return (mica_quantise_options){.effort = converter->plan->effort,
                                   .gain = MICA_QUANTISE_GAIN,
                                   .importance = tensor->importance ? converter->importance : NULL};
}

/* fp8 to Q8_0 also tries the grid of the fp8 values themselves. */
static mica_status convert_fp8(mica_export_converter *converter, const mica_export_unit *unit, const mica_matrix *matrix, uint64_t row,
                               uint64_t count, uint8_t *out, mica_error *error) {
    const mica_quantise_options options = quantise_options(converter, unit->tensor);
    const mica_status status = mica_quantise_matrix(MICA_Q8_0, matrix, row, count, &options, converter->strip, out, error);
    if (status == MICA_OK)
        return MICA_OK;
    return mica_fail_context(error, status, "%s, rows from %llu on", unit->weight->name, (unsigned long long)unit->source_row);
}

/* Rows of floats in the tensor's order, to the tensor's type. */
static mica_status encode(const mica_export_converter *converter, const mica_export_tensor *tensor, const float *values, uint64_t rows,
                          uint8_t *out, mica_error *error) {
    if (!mica_dtype_is_block(tensor->dtype)) {
        (void)mica_encode_plain(tensor->dtype, values, rows * tensor->columns, out);
        return MICA_OK;
    }
    const mica_quantise_options options = quantise_options(converter, tensor);
    const mica_status status =
        converter->covariance
            ? mica_quantise_rows_covariance(tensor->dtype, values, tensor->columns, rows, converter->covariance, &options, out, error)
            : mica_quantise_rows(tensor->dtype, values, tensor->columns, rows, tensor->columns, &options, out, error);
    return status == MICA_OK ? MICA_OK : mica_fail_context(error, status, "%s", tensor->name);
}

/* Of queries, keys and values of `heads`, in `rows`, those of queries and keys turned: FUSED_TURNED and the thirds. */
static uint64_t turned_row(uint64_t heads, uint64_t rows, uint64_t row) {
    const uint64_t width = rows / 3 / heads, place = row % width, half = place / (width / 2), rest = place % (width / 2);
    return row >= rows / 3 * 2 ? row : row - place + rest / 2 * 4 + half * 2 + rest % 2;
}

/* Where row `row` of the tensor's matrix stands in the weight. */
static uint64_t source_row_of(const mica_export_plan *plan, const mica_export_unit *unit, uint64_t row) {
    const mica_config *config = &plan->model->config;
    const mica_export_tensor *tensor = unit->tensor;
    if (tensor->form == MICA_GGUF_VALUE_PART)
        return unit->matrix * (config->qk_nope_head_dim + config->v_head_dim) + config->qk_nope_head_dim + row;
    if (tensor->form >= MICA_GGUF_QUERY_THIRD && tensor->form <= MICA_GGUF_VALUE_THIRD)
        return turned_row(plan->vision_heads, 3 * tensor->rows, row + tensor->rows * (uint64_t)(tensor->form - MICA_GGUF_QUERY_THIRD));
    if (tensor->form == MICA_GGUF_FUSED_TURNED)
        return turned_row(plan->vision_heads, tensor->rows, row);
    if (tensor->form != MICA_GGUF_QUERY_PAIRS && tensor->form != MICA_GGUF_KEY_PAIRS)
        return row;
    const uint64_t heads = tensor->form == MICA_GGUF_QUERY_PAIRS ? config->num_attention_heads : config->num_key_value_heads;
    const uint64_t width = tensor->rows / heads, place = row % width;
    return row - place + place % 2 * (width / 2) + place / 2;
}

static uint64_t output_row_bytes(const mica_export_unit *unit) {
    return unit->bytes / unit->rows;
}

static mica_status convert_rows(mica_export_converter *converter, const mica_export_unit *unit, const mica_matrix *matrix, uint8_t *out,
                                mica_error *error) {
    const mica_export_tensor *tensor = unit->tensor;
    const bool mapped = tensor->form == MICA_GGUF_QUERY_PAIRS || tensor->form == MICA_GGUF_KEY_PAIRS ||
                        tensor->form == MICA_GGUF_FUSED_TURNED || tensor->form == MICA_GGUF_QUERY_THIRD ||
                        tensor->form == MICA_GGUF_KEY_THIRD;
    const bool own_grid = !mapped && tensor->dtype == MICA_Q8_0 && matrix->encoding == MICA_ENCODING_FP8_BLOCK;
    const uint64_t most = strip_rows(tensor);
    mica_status status = MICA_OK;
    for (uint64_t row = 0; status == MICA_OK && row < unit->rows;) {
        const uint64_t count = unit->rows - row < most ? unit->rows - row : most;
        const uint64_t first = source_row_of(converter->plan, unit, unit->row + row);
        if (own_grid) {
            status = convert_fp8(converter, unit, matrix, first - unit->source_row, count, out + row * output_row_bytes(unit), error);
            row += count;
            continue;
        }
        for (uint64_t i = 0; i < (mapped ? count : 1); i++) {
            const uint64_t source = mapped ? source_row_of(converter->plan, unit, unit->row + row + i) : first;
            mica_matrix_decode(matrix, 0, source - unit->source_row, mapped ? 1 : count, converter->strip + i * tensor->columns,
                               tensor->columns);
        }
        status = check_finite(unit, converter->strip, first, count, tensor->columns, error);
        if (status == MICA_OK)
            status = encode(converter, tensor, converter->strip, count, out + row * output_row_bytes(unit), error);
        row += count;
    }
    return status;
}

/* [nope][latent] as stored, [latent][nope] as wanted. */
static mica_status convert_turned(mica_export_converter *converter, const mica_export_unit *unit, const mica_matrix *matrix, uint8_t *out,
                                  mica_error *error) {
    const mica_export_tensor *tensor = unit->tensor;
    const uint64_t nope = tensor->columns, latent = tensor->rows;
    const uint64_t first = unit->matrix * (nope + converter->plan->model->config.v_head_dim);
    mica_matrix_decode(matrix, 0, first - unit->source_row, nope, converter->strip, latent);
    mica_status status = check_finite(unit, converter->strip, first, nope, latent, error);
    if (status != MICA_OK)
        return status;
    for (uint64_t row = 0; row < nope; row++)
        for (uint64_t column = 0; column < latent; column++)
            converter->turned[column * nope + row] = converter->strip[row * latent + column];
    return encode(converter, tensor, converter->turned, latent, out, error);
}

/* A bias of heads: its elements are ordered as the rows of its matrix are. */
static mica_status convert_bias(mica_export_converter *converter, const mica_export_unit *unit, const mica_matrix *matrix, uint8_t *out,
                                mica_error *error) {
    mica_export_tensor upright = *unit->tensor;
    upright.rows = upright.columns;
    mica_export_unit turned = *unit;
    turned.tensor = &upright;
    mica_matrix_decode(matrix, 0, 0, 1, converter->strip, upright.columns);
    const mica_status status = check_finite(unit, converter->strip, 0, 1, upright.columns, error);
    if (status != MICA_OK)
        return status;
    for (uint64_t i = 0; i < upright.columns; i++)
        converter->turned[i] = converter->strip[source_row_of(converter->plan, &turned, i)];
    return encode(converter, unit->tensor, converter->turned, 1, out, error);
}

/* A third of a fused bias, ordered as the rows of its matrix are. */
static mica_status convert_bias_third(mica_export_converter *converter, const mica_export_unit *unit, const mica_matrix *matrix,
                                      uint8_t *out, mica_error *error) {
    const mica_export_tensor *tensor = unit->tensor;
    mica_matrix_decode(matrix, 0, 0, 1, converter->strip, matrix->columns);
    const mica_status status = check_finite(unit, converter->strip, 0, 1, matrix->columns, error);
    if (status != MICA_OK)
        return status;
    mica_export_tensor upright = *tensor;
    upright.rows = upright.columns;
    mica_export_unit turned = *unit;
    turned.tensor = &upright;
    for (uint64_t i = 0; i < tensor->columns; i++)
        converter->turned[i] = converter->strip[source_row_of(converter->plan, &turned, i)];
    return encode(converter, tensor, converter->turned, 1, out, error);
}

static mica_status convert_table(const mica_export_unit *unit, const uint8_t *data, uint8_t *out, mica_error *error) {
    const uint64_t columns = unit->tensor->columns;
    for (uint64_t i = 0; i < unit->rows * columns; i++) {
        int64_t wide = 0;
        int32_t narrow;
        if (unit->weight->data->dtype == MICA_I64)
            memcpy(&wide, data + 8 * i, sizeof wide);
        else {
            memcpy(&narrow, data + 4 * i, sizeof narrow);
            wide = narrow;
        }
        if (wide < INT32_MIN || wide > INT32_MAX)
            return mica_fail(error, MICA_BAD_INPUT, "%s: expected integers of 32 bits, got %lld at [%llu,%llu]", unit->weight->name,
                             (long long)wide, (unsigned long long)(unit->row + i / columns), (unsigned long long)(i % columns));
        narrow = (int32_t)wide;
        memcpy(out + 4 * i, &narrow, sizeof narrow);
    }
    return MICA_OK;
}

/* The bytes are those of the file already (values that are not finite would go unseen in F32 and BF16, so these are looked at). */
static bool is_copy(const mica_export_unit *unit) {
    const mica_gguf_form form = unit->tensor->form;
    const mica_dtype dtype = unit->tensor->dtype;
    return (form == MICA_GGUF_COPY || form == MICA_GGUF_EXPERTS) && unit->weight->data->dtype == dtype &&
           (mica_dtype_is_block(dtype) || !mica_dtype_is_floating(dtype) || dtype == MICA_F64);
}

/* The codes of the checkpoint in the blocks of the file; codes are always finite. */
static mica_status repack(const mica_export_unit *unit, const mica_matrix *matrix, uint8_t *out, uint64_t *inexact, mica_error *error) {
    const mica_dtype dtype = unit->tensor->dtype;
    const uint64_t row = unit->row - unit->source_row;
    mica_repack_misfit misfit;
    if (!mica_repack_scales_fit(matrix, dtype, row, unit->rows, &misfit))
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected scales that are finite in %s, got %g at [%llu,%llu]", unit->weight->name,
                         mica_dtype_name(dtype), misfit.scale, (unsigned long long)(unit->source_row + misfit.row),
                         (unsigned long long)misfit.column);
    mica_repack_rows(matrix, dtype, row, unit->rows, out, inexact);
    return MICA_OK;
}

mica_status mica_export_convert(mica_export_converter *converter, const mica_export_unit *unit, const uint8_t *const *data, uint8_t *out,
                                uint64_t *inexact, mica_error *error) {
    const mica_export_tensor *tensor = unit->tensor;
    if (tensor->values) {
        memcpy(out, tensor->values, unit->bytes);
        return MICA_OK;
    }
    if (tensor->form == MICA_GGUF_TABLE)
        return convert_table(unit, data[0], out, error);
    if (is_copy(unit)) {
        memcpy(out, data[0], unit->bytes);
        return MICA_OK;
    }
    mica_matrix matrix;
    mica_status status = matrix_of(converter->plan, unit, data, &matrix, error);
    if (status == MICA_OK)
        status = read_importance(converter, unit, error);
    if (status != MICA_OK)
        return status;
    if ((tensor->form == MICA_GGUF_COPY || tensor->form == MICA_GGUF_EXPERTS) && mica_repack_can(&matrix, tensor->dtype))
        return repack(unit, &matrix, out, inexact, error);
    if (tensor->form == MICA_GGUF_KEY_PART)
        return convert_turned(converter, unit, &matrix, out, error);
    if (tensor->rank == 1 &&
        (tensor->form == MICA_GGUF_QUERY_PAIRS || tensor->form == MICA_GGUF_KEY_PAIRS || tensor->form == MICA_GGUF_FUSED_TURNED))
        return convert_bias(converter, unit, &matrix, out, error);
    if (tensor->rank == 1 && tensor->form >= MICA_GGUF_QUERY_THIRD && tensor->form <= MICA_GGUF_VALUE_THIRD)
        return convert_bias_third(converter, unit, &matrix, out, error);
    status = acquire_covariance(converter, unit, error);
    if (status == MICA_OK)
        status = convert_rows(converter, unit, &matrix, out, error);
    if (converter->covariance)
        mica_export_factors_release(converter->plan->factors, converter->covariance);
    converter->covariance = NULL;
    return status;
}
