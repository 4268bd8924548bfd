/* operations/export_covariance.c: see the header. One mutex is held while factors are made: one at a time, so that the memory is that of
 * one.
 * Judged by tests/operations/test_export_covariance.c. */
#include "operations/export_covariance.h"

#include <pthread.h>

#include "base/memory.h"

typedef struct cached {
    const mica_imatrix_covariance *covariance; /* NULL: nothing here */
    uint64_t slot, used_at;
    uint32_t users;
    mica_covariance *factors;
} cached;

struct mica_export_factors {
    const mica_imatrix *imatrix;
    pthread_mutex_t mutex;
    cached *places; /* [count] */
    uint32_t count;
    uint64_t clock;
};

mica_status mica_export_factors_create(const mica_imatrix *imatrix, uint32_t threads, mica_export_factors **factors, mica_error *error) {
    mica_export_factors *made = mica_calloc(1, sizeof *made);
    cached *places = mica_calloc((uint64_t)threads + 1, sizeof *places);
    if (!made || !places || pthread_mutex_init(&made->mutex, NULL) != 0) {
        mica_free(made);
        mica_free(places);
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for factors");
    }
    made->imatrix = imatrix;
    made->places = places;
    made->count = threads + 1;
    *factors = made;
    return MICA_OK;
}

void mica_export_factors_free(mica_export_factors *factors) {
    if (!factors)
        return;
    for (uint32_t i = 0; i < factors->count; i++)
        mica_covariance_free(factors->places[i].factors);
    pthread_mutex_destroy(&factors->mutex);
    mica_free(factors->places);
    mica_free(factors);
}

uint64_t mica_export_factors_bytes(uint64_t columns, uint32_t threads) {
    const uint64_t square = columns * columns * sizeof(float);
    return (threads + 1) * (square / 2 + 64 * columns * sizeof(float)) + 2 * square;
}

/* What few tokens show of products of columns is part noise: the expected size of that is taken off. n columns of white noise seen t times
 * have eigenvalues up to (1 + sqrt(n / t))^2 where all are 1. */
static void shrink(float *h, uint64_t columns, int32_t tokens) {
    const float keep = (float)tokens / ((float)tokens + (float)columns);
    for (uint64_t i = 0; i < columns; i++)
        for (uint64_t j = 0; j < columns; j++)
            h[i * columns + j] *= i == j ? 1 : keep;
}

static mica_status make(const mica_export_factors *factors, const mica_imatrix_covariance *covariance, uint64_t slot,
                        mica_covariance **made, mica_error *error) {
    const uint64_t columns = covariance->columns;
    float *h = mica_reallocarray(NULL, columns * columns, sizeof *h);
    if (!h)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a covariance of %llu columns", (unsigned long long)columns);
    mica_status status = mica_imatrix_read_covariance(factors->imatrix, covariance, slot, h, error);
    if (status == MICA_OK) {
        shrink(h, columns, covariance->of[slot][1]);
        status = mica_covariance_create(h, columns, MICA_COVARIANCE_DAMPING, made, error);
        if (status != MICA_OK)
            status = mica_fail_context(error, status, "%s: %s", mica_file_path(factors->imatrix->file), covariance->name);
    }
    mica_free(h);
    return status;
}

mica_status mica_export_factors_acquire(mica_export_factors *factors, const mica_imatrix_covariance *covariance, uint64_t slot,
                                        const mica_covariance **made, mica_error *error) {
    cached *place = NULL;
    mica_status status = MICA_OK;
    pthread_mutex_lock(&factors->mutex);
    for (uint32_t i = 0; !place && i < factors->count; i++)
        if (factors->places[i].covariance == covariance && factors->places[i].slot == slot)
            place = &factors->places[i];
    if (!place) { /* the one longest unused; threads are fewer than places */
        for (uint32_t i = 0; i < factors->count; i++)
            if (factors->places[i].users == 0 && (!place || factors->places[i].used_at < place->used_at))
                place = &factors->places[i];
        mica_covariance_free(place->factors);
        *place = (cached){0};
        status = make(factors, covariance, slot, &place->factors, error);
        if (status == MICA_OK) {
            place->covariance = covariance;
            place->slot = slot;
        }
    }
    if (status == MICA_OK) {
        place->users++;
        place->used_at = ++factors->clock;
        *made = place->factors;
    }
    pthread_mutex_unlock(&factors->mutex);
    return status;
}

void mica_export_factors_release(mica_export_factors *factors, const mica_covariance *made) {
    pthread_mutex_lock(&factors->mutex);
    for (uint32_t i = 0; i < factors->count; i++)
        if (factors->places[i].users > 0 && factors->places[i].factors == made)
            factors->places[i].users--;
    pthread_mutex_unlock(&factors->mutex);
}
