/* test_svd.c: singular triplets against LAPACK's dgesdd in float64, every encoding, spectrum, orientation and instruction set; the odd
 * shapes; and the certificate itself, recomputed here from the stored vectors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/cpu.h"
#include "numerics/lapack.h"
#include "numerics/matrices.h"
#include "numerics/spectrum.h"
#include "numerics/svd.h"

typedef struct truth {
    double *values; /* [least], least = min(rows, columns) */
    double *right;  /* [least][columns]: right singular vectors */
    size_t least;
    double frobenius_squared;
} truth;

/* LAPACK sees W^T (column-major), so its left vectors are W's right ones. */
static truth truth_of(const mica_matrix *matrix, int exponent) {
    size_t rows = matrix->rows, columns = matrix->columns, least = rows < columns ? rows : columns;
    float *decoded = malloc(rows * columns * sizeof *decoded);
    truth t = {malloc(least * sizeof(double)), malloc(least * columns * sizeof(double)), least, 0};
    double *copy = malloc(rows * columns * sizeof *copy), *other = malloc(least * rows * sizeof *other);
    mica_matrix_decode(matrix, exponent, 0, rows, decoded, columns);
    for (size_t i = 0; i < rows * columns; i++) {
        copy[i] = ldexp((double)decoded[i], exponent);
        t.frobenius_squared += copy[i] * copy[i];
    }
    int m = (int)columns, n = (int)rows, k = (int)least, info, work_count = (int)(8 * least * least + 80 * least + 8 * (rows + columns));
    double *work = malloc((size_t)work_count * sizeof *work);
    int *integers = malloc(8 * least * sizeof *integers);
    mica_blas.dgesdd_("S", &m, &n, copy, &m, t.values, t.right, &m, other, &k, work, &work_count, integers, &info);
    assert_int_equal(info, 0);
    free(work), free(integers), free(copy), free(other), free(decoded);
    return t;
}

static void truth_free(truth *t) {
    free(t->values);
    free(t->right);
}

typedef struct found {
    mica_svd_result result;
    double values[128], *spectrum;
    float *vectors;
} found;

static found find(const mica_matrix *matrix, mica_svd_options options) {
    found f = {0};
    mica_matrix_health health;
    mica_error error = {0};
    mica_svd_workspace *workspace = NULL;
    mica_matrix_examine(matrix, &health);
    assert_false(health.has_nan || health.has_infinity);
    f.vectors = calloc(options.count * matrix->columns, sizeof *f.vectors);
    f.spectrum = calloc(matrix->rows < matrix->columns ? matrix->rows : matrix->columns, sizeof *f.spectrum);
    f.result = (mica_svd_result){.values = f.values, .vectors = f.vectors, .spectrum = f.spectrum};
    options.vectors = true;
    if (mica_svd_workspace_create(matrix->rows, matrix->columns, &options, &workspace, &error) != MICA_OK ||
        mica_svd(workspace, matrix, health.exponent, &options, &f.result, &error) != MICA_OK)
        fail_msg("%s", error.message);
    f.result.values = f.values;
    mica_svd_workspace_free(workspace);
    return f;
}

static void found_free(found *f) {
    free(f->vectors);
    free(f->spectrum);
}

/* The residual of the stored (s, v), from nothing but them and the truth: max(|W v - s u|, |W^T u - s v|) / s_0 with the u that minimises
 * the sum of squares. In the true singular vectors' coordinates c_j = v_j . v that is u_j = 2 s s_j c_j / (s^2 + s_j^2). */
static double residual_of(const truth *t, size_t columns, const found *f) {
    double worst = 0;
    for (uint32_t i = 0; i < f->result.rank; i++) {
        const float *v = f->vectors + i * columns;
        double s = f->values[i], first = 0, second = 0, inside = 0, norm = 0;
        for (size_t c = 0; c < columns; c++)
            norm += (double)v[c] * (double)v[c];
        for (size_t j = 0; j < t->least; j++) {
            double dot = 0, sj = t->values[j];
            for (size_t c = 0; c < columns; c++)
                dot += t->right[j * columns + c] * (double)v[c];
            double u = 2 * s * sj * dot / (s * s + sj * sj);
            first += (sj * dot - s * u) * (sj * dot - s * u);
            second += (sj * u - s * dot) * (sj * u - s * dot);
            inside += dot * dot;
        }
        second += s * s * fmax(norm - inside, 0);
        worst = fmax(worst, sqrt(fmax(first, second)) / t->values[0]);
    }
    return worst;
}

static double orthonormality_of(size_t columns, const found *f) {
    double worst = 0;
    for (uint32_t i = 0; i < f->result.rank; i++)
        for (uint32_t j = 0; j <= i; j++) {
            double dot = i == j ? -1 : 0;
            for (size_t c = 0; c < columns; c++)
                dot += (double)f->vectors[i * columns + c] * (double)f->vectors[j * columns + c];
            worst = fmax(worst, fabs(dot));
        }
    return worst;
}

static void check(const char *what, const mica_matrix *matrix, const truth *t, const found *f) {
    size_t columns = matrix->columns, least = matrix->rows < columns ? matrix->rows : columns;
    double s0 = t->values[0], worst = 0;
    for (uint32_t i = 0; i < f->result.count; i++)
        worst = fmax(worst, fabs(f->values[i] - t->values[i]) / s0);
    double residual = residual_of(t, columns, f), orthonormality = orthonormality_of(columns, f);
    double var = mica_spectrum_var(f->values, f->result.count, 64, f->result.frobenius * f->result.frobenius);
    double var_true = mica_spectrum_var(t->values, least, 64, t->frobenius_squared);
    if (worst > 1e-5 || residual > 1e-5 || orthonormality > 1e-5 || fabs(var - var_true) > 1e-6 || worst > f->result.value_error + 1e-12)
        fail_msg("%s: route %s, values off by %.1e s0 (bound %.1e), residual %.1e, orthonormality %.1e, var@64 off by %.1e", what,
                 mica_svd_route_name(f->result.route), worst, f->result.value_error, residual, orthonormality, var - var_true);
    /* The certificate is what is measured: neither flattering nor blind. */
    if (f->result.residual > 2 * residual + 1e-6 || residual > 2 * f->result.residual + 1e-6)
        fail_msg("%s: residual given as %.2e, measured %.2e", what, f->result.residual, residual);
    assert_true(fabs(f->result.orthonormality - orthonormality) <= 1e-6);
    assert_true(fabs(f->result.frobenius * f->result.frobenius / t->frobenius_squared - 1) < 1e-6);
    double fourth = 0;
    for (size_t i = 0; i < least; i++)
        fourth += pow(t->values[i], 4);
    assert_true(fabs(f->result.sum_fourth / fourth - 1) < 1e-5);
    for (uint32_t i = 0; i < f->result.rank; i++) { /* signs */
        size_t top = 0;
        for (size_t c = 0; c < columns; c++)
            if (fabsf(f->vectors[i * columns + c]) > fabsf(f->vectors[i * columns + top]))
                top = c;
        assert_true(f->vectors[i * columns + top] > 0);
    }
}

static stored make(int encoding, spectrum_kind kind, size_t rows, size_t columns) {
    float *values = random_values(kind, rows, columns);
    stored s = encoding == 0   ? store_fp8(values, rows, columns, 128)
               : encoding == 1 ? store_mxfp4(values, rows, columns)
               : encoding == 2 ? store_int4(values, rows, columns)
               : encoding == 3 ? store_bf16(values, rows, columns)
               : encoding == 4 ? store_f32(values, rows, columns)
                               : store_fp8(values, rows, columns, 48);
    free(values);
    return s;
}

/* Sizes beyond the direct route; the shorter side decides the work. */
static void krylov_agrees_with_lapack(void **state) {
    (void)state;
    static const struct {
        const char *what;
        int encoding;
        spectrum_kind kind;
        size_t rows, columns;
    } cases[] = {
        {"fp8 flat, ragged", 0, FLAT, 523, 2059},     {"fp8 spiked", 0, SPIKED, 544, 2048},
        {"fp8 1/i", 0, HARMONIC, 544, 2048},          {"fp8 flat, tall, ragged", 0, FLAT, 2059, 523},
        {"fp8 spiked, tall", 0, SPIKED, 2048, 544},   {"mxfp4 flat", 1, FLAT, 530, 2080},
        {"mxfp4 spiked, tall", 1, SPIKED, 2080, 544}, {"int4 flat", 2, FLAT, 530, 2080},
        {"int4 spiked, tall", 2, SPIKED, 2090, 544},  {"bf16 flat", 3, FLAT, 523, 2059},
        {"bf16 spiked, tall", 3, SPIKED, 2059, 523},  {"f32 spiked", 4, SPIKED, 523, 2059},
        {"fp8 blocks of 48", 5, SPIKED, 523, 2059},   {"square", 0, FLAT, 1030, 1030},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        stored s = make(cases[i].encoding, cases[i].kind, cases[i].rows, cases[i].columns);
        mica_matrix_health health;
        mica_matrix_examine(&s.matrix, &health);
        truth t = truth_of(&s.matrix, health.exponent);
        for (int cpu = 0; cpu <= (int)mica_cpu_detected(); cpu++) {
            mica_cpu_select((mica_cpu)cpu);
            found f = find(&s.matrix, (mica_svd_options){.count = 64, .check_count = true});
            if (f.result.route != MICA_SVD_KRYLOV || !f.result.count_checked)
                fail_msg("%s, %s: took the %s route: %s", cases[i].what, mica_cpu_name((mica_cpu)cpu), mica_svd_route_name(f.result.route),
                         f.result.why_dense ? f.result.why_dense : "count not checked");
            check(cases[i].what, &s.matrix, &t, &f);
            found_free(&f);
        }
        truth_free(&t);
        stored_free(&s);
    }
}

static void small_and_odd_shapes(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{1, 1},   {1, 32},  {32, 1},   {3, 32},    {48, 136},  {136, 48},
                                       {64, 64}, {65, 64}, {63, 200}, {130, 257}, {600, 100}, {12, 5000}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int kind = 0; kind < 4; kind++) {
            stored s = make(0, (spectrum_kind)kind, shapes[i][0], shapes[i][1]);
            mica_matrix_health health;
            mica_matrix_examine(&s.matrix, &health);
            truth t = truth_of(&s.matrix, health.exponent);
            found f = find(&s.matrix, (mica_svd_options){.count = 64, .full_spectrum = true});
            size_t least = shapes[i][0] < shapes[i][1] ? shapes[i][0] : shapes[i][1];
            assert_int_equal(f.result.count, least < 64 ? least : 64);
            check("small", &s.matrix, &t, &f);
            for (size_t k = 0; k < least; k++)
                assert_true(fabs(f.spectrum[k] - t.values[k]) <= 1e-10 * t.values[0]);
            found_free(&f), truth_free(&t), stored_free(&s);
        }
}

/* Zero, constant (rank 1), rank 6 exactly: zero rows past the rank, on both routes. */
static void deficient_ranks(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{40, 96}, {96, 40}, {530, 2048}, {2048, 530}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (uint32_t rank = 0; rank < 7; rank += rank == 1 ? 5 : 1) {
            size_t rows = shapes[i][0], columns = shapes[i][1];
            float *values = calloc(rows * columns, sizeof *values);
            for (size_t r = 0; r < rows; r++) /* six different rows of small integers, again and again */
                for (size_t c = 0; c < columns; c++) {
                    random_state = (r % 8) * 1000003 + c;
                    values[r * columns + c] = rank == 1 ? 0.75f : rank == 6 && r % 8 < 6 ? (float)(random_u64() % 7) - 3 : 0;
                }
            stored s = store_bf16(values, rows, columns);
            found f = find(&s.matrix, (mica_svd_options){.count = 64});
            assert_int_equal(f.result.rank, rank);
            assert_int_equal(f.result.route, rank == 0 ? MICA_SVD_ZERO : MICA_SVD_DENSE);
            for (uint32_t k = rank; k < f.result.count; k++)
                for (size_t c = 0; c < columns; c++)
                    assert_true(f.vectors[k * columns + c] == 0);
            if (rank > 0) {
                truth t = truth_of(&s.matrix, 0);
                check("deficient", &s.matrix, &t, &f);
                truth_free(&t);
            }
            found_free(&f), stored_free(&s), free(values);
        }
}

/* Scales at the ends of E8M0: values beyond float32 are exact in float64, relative precision does not suffer. */
static void extreme_norms(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{40, 96}, {530, 2048}};
    for (size_t i = 0; i < 2; i++) {
        stored s = make(1, SPIKED, shapes[i][0], shapes[i][1]);
        uint8_t *scales = s.scales, largest = 0;
        size_t count = shapes[i][0] * shapes[i][1] / 32;
        found plain = find(&s.matrix, (mica_svd_options){.count = 64});
        for (size_t k = 0; k < count; k++)
            largest = scales[k] > largest ? scales[k] : largest;
        for (int sign = -1; sign < 2; sign += 2) {
            int shift = sign > 0 ? 254 - largest : -100;
            for (size_t k = 0; k < count; k++)
                scales[k] = (uint8_t)(scales[k] + shift);
            found moved = find(&s.matrix, (mica_svd_options){.count = 64});
            for (uint32_t k = 0; k < plain.result.count; k++)
                assert_true(moved.values[k] == ldexp(plain.values[k], shift));
            assert_memory_equal(moved.vectors, plain.vectors, plain.result.count * shapes[i][1] * sizeof(float));
            assert_true(sign < 0 || moved.values[0] > (double)3.402823466e38f);
            for (size_t k = 0; k < count; k++)
                scales[k] = (uint8_t)(scales[k] - shift);
            found_free(&moved);
        }
        found_free(&plain), stored_free(&s);
    }
}

/* A plan from a different matrix costs time, never truth; and the same input gives the same bits, whatever the workspace did before. */
static void plans_and_repetition(void **state) {
    (void)state;
    stored s = make(0, SPIKED, 530, 2100), other = make(0, HARMONIC, 1100, 1030);
    truth t = truth_of(&s.matrix, 0);
    found learnt = find(&s.matrix, (mica_svd_options){.count = 64});
    assert_true(learnt.result.plan.degree > 0 && learnt.result.plan.basis > 64);
    static const double factors[] = {0.05, 0.9, 1.1, 30};
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++) {
        mica_svd_plan plan = learnt.result.plan;
        plan.degree = 3;
        plan.bound_over_trace *= factors[i];
        found f = find(&s.matrix, (mica_svd_options){.count = 64, .plan = &plan});
        check("foreign plan", &s.matrix, &t, &f);
        found_free(&f);
    }
    mica_svd_options options = {.count = 64, .vectors = true};
    mica_svd_workspace *workspace;
    mica_matrix_health health;
    double values[64];
    float *vectors = calloc(64 * 2100, sizeof *vectors);
    mica_svd_result result = {.values = values, .vectors = vectors};
    assert_int_equal(mica_svd_workspace_create(1100, 2100, &options, &workspace, NULL), MICA_OK);
    const stored *order[] = {&s, &other, &s};
    for (int i = 0; i < 3; i++) {
        mica_matrix_examine(&order[i]->matrix, &health);
        assert_int_equal(mica_svd(workspace, &order[i]->matrix, health.exponent, &options, &result, NULL), MICA_OK);
        if (order[i] == &s) {
            assert_memory_equal(vectors, learnt.vectors, 64 * 2100 * sizeof *vectors);
            assert_memory_equal(values, learnt.values, sizeof values);
        }
    }
    mica_svd_workspace_free(workspace);
    free(vectors);
    found_free(&learnt), truth_free(&t), stored_free(&s), stored_free(&other);
}

static void full_spectra_and_other_counts(void **state) {
    (void)state;
    stored s = make(0, SPIKED, 1030, 1540);
    truth t = truth_of(&s.matrix, 0);
    static const uint32_t counts[] = {1, 8, 64, 100};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        found f = find(&s.matrix, (mica_svd_options){.count = counts[i], .full_spectrum = true});
        assert_int_equal(f.result.count, counts[i]);
        for (uint32_t k = 0; k < counts[i]; k++)
            assert_true(fabs(f.values[k] - t.values[k]) <= 1e-5 * t.values[0]);
        assert_true(residual_of(&t, 1540, &f) <= 1e-5);
        double effective = mica_spectrum_effective_rank(f.spectrum, 1030), expected = mica_spectrum_effective_rank(t.values, 1030);
        assert_true(fabs(effective / expected - 1) < 1e-6);
        for (size_t k = 0; k < 1030; k++)
            assert_true(fabs(f.spectrum[k] - t.values[k]) <= 3e-5 * t.values[0]);
        found_free(&f);
    }
    truth_free(&t), stored_free(&s);
}

static uint64_t shared_phases;

static void each(void *pool, uint64_t count, void (*body)(void *body_context, uint64_t first, uint64_t last, uint32_t index),
                 void *body_context) {
    shared_phases++;
    mica_pool_each(pool, count, 1, body, body_context);
}

/* Whoever takes part in the Gram matrix: the same bits. Encodings of one digit and of two, wide and tall, ragged. */
static void sharing_changes_nothing(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{530, 2080}, {2080, 544}, {1024, 1152}};
    mica_pool *pool = NULL;
    assert_int_equal(mica_pool_create(3, &pool, NULL), MICA_OK);
    for (int encoding = 0; encoding < 6; encoding++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            stored s = make(encoding, SPIKED, shapes[i][0], shapes[i][1]);
            found alone = find(&s.matrix, (mica_svd_options){.count = 64});
            shared_phases = 0;
            found shared = find(&s.matrix, (mica_svd_options){.count = 64, .share = {each, pool}});
            assert_true(shared_phases > 0);
            assert_memory_equal(shared.values, alone.values, sizeof alone.values);
            assert_memory_equal(shared.vectors, alone.vectors, 64 * shapes[i][1] * sizeof(float));
            assert_true(shared.result.frobenius == alone.result.frobenius && shared.result.sum_fourth == alone.result.sum_fourth);
            found_free(&alone);
            found_free(&shared);
            stored_free(&s);
        }
    mica_pool_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_and_odd_shapes),
        cmocka_unit_test(deficient_ranks),
        cmocka_unit_test(extreme_norms),
        cmocka_unit_test(plans_and_repetition),
        cmocka_unit_test(full_spectra_and_other_counts),
        cmocka_unit_test(sharing_changes_nothing),
        cmocka_unit_test(krylov_agrees_with_lapack),
    };
    if (mica_lapack_load(NULL) != MICA_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
