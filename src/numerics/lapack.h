/* numerics/lapack.h: the few BLAS and LAPACK routines used, Fortran calling convention (column-major), from OpenBLAS, loaded at first use.
 *
 * Loaded, not linked, because OpenBLAS chooses its kernels when it is loaded and does not know every processor (0.3.21 takes an Emerald Rapids
 * for a Prescott: the float64 route then takes 3.7 s a matrix, not 1.7): mica_lapack_load names the kernels that belong to mica_cpu_current(), unless the user's
 * OPENBLAS_CORETYPE already does. So the arithmetic, too, depends on the chosen instruction set alone. Each call runs on one thread. */
#ifndef MICA_NUMERICS_LAPACK_H
#define MICA_NUMERICS_LAPACK_H

#include "base/error.h"

/* result type, name, parameters */
#define MICA_LAPACK_LIST(X)                                                                                                                          \
    X(dgemm_, (const char *transa, const char *transb, const int *m, const int *n, const int *k, const double *alpha, const double *a,               \
               const int *lda, const double *b, const int *ldb, const double *beta, double *c, const int *ldc))                                      \
    X(dsyrk_, (const char *uplo, const char *trans, const int *n, const int *k, const double *alpha, const double *a, const int *lda,                \
               const double *beta, double *c, const int *ldc))                                                                                       \
    X(ssyrk_, (const char *uplo, const char *trans, const int *n, const int *k, const float *alpha, const float *a, const int *lda,                  \
               const float *beta, float *c, const int *ldc))                                                                                         \
    X(spotrf_, (const char *uplo, const int *n, float *a, const int *lda, int *info))                                                                \
    X(dsytrd_, (const char *uplo, const int *n, double *a, const int *lda, double *d, double *e, double *tau, double *work, const int *lwork,         \
                int *info))                                                                                                                          \
    X(dstedc_, (const char *compz, const int *n, double *d, double *e, double *z, const int *ldz, double *work, const int *lwork, int *iwork,        \
                const int *liwork, int *info))                                                                                                       \
    X(dormtr_, (const char *side, const char *uplo, const char *trans, const int *m, const int *n, const double *a, const int *lda,                  \
                const double *tau, double *c, const int *ldc, double *work, const int *lwork, int *info))                                            \
    X(dsyevr_, (const char *jobz, const char *range, const char *uplo, const int *n, double *a, const int *lda, const double *vl, const double *vu,  \
                const int *il, const int *iu, const double *abstol, int *m, double *w, double *z, const int *ldz, int *isuppz, double *work,         \
                const int *lwork, int *iwork, const int *liwork, int *info))                                                                         \
    X(dsygvd_, (const int *itype, const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *b, const int *ldb, double *w, \
                double *work, const int *lwork, int *iwork, const int *liwork, int *info))                                                           \
    X(dgesdd_, (const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s, double *u, const int *ldu, double *vt,           \
                const int *ldvt, double *work, const int *lwork, int *iwork, int *info))                                                             \
    X(sgesdd_, (const char *jobz, const int *m, const int *n, float *a, const int *lda, float *s, float *u, const int *ldu, float *vt,               \
                const int *ldvt, float *work, const int *lwork, int *iwork, int *info))                                                              \
    X(ssyevr_, (const char *jobz, const char *range, const char *uplo, const int *n, float *a, const int *lda, const float *vl, const float *vu,     \
                const int *il, const int *iu, const float *abstol, int *m, float *w, float *z, const int *ldz, int *isuppz, float *work,             \
                const int *lwork, int *iwork, const int *liwork, int *info))                                                                         \
    X(ssytrd_, (const char *uplo, const int *n, float *a, const int *lda, float *d, float *e, float *tau, float *work, const int *lwork, int *info)) \
    X(dsterf_, (const int *n, double *d, double *e, int *info))

typedef struct mica_lapack {
#define X(name, parameters) void(*name) parameters;
    MICA_LAPACK_LIST(X)
#undef X
    const char *core; /* the kernels in use, by OpenBLAS's name */
    char version[32]; /* "0.3.21" */
} mica_lapack;

/* Loads once; FAILED when there is no OpenBLAS. Any thread. The table is valid from then on as long as the process lives. */
mica_status mica_lapack_load(mica_error *error) MICA_CHECKED;
extern mica_lapack mica_blas;

#endif
