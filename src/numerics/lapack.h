/* numerics/lapack.h: the few BLAS and LAPACK routines used, Fortran calling convention (column-major). The program calls them from its own
 * threads, each single-threaded: mica_lapack_begin() sees to that, once. */
#ifndef MICA_NUMERICS_LAPACK_H
#define MICA_NUMERICS_LAPACK_H

void dgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k, const double *alpha, const double *a, const int *lda,
            const double *b, const int *ldb, const double *beta, double *c, const int *ldc);
void dsyrk_(const char *uplo, const char *trans, const int *n, const int *k, const double *alpha, const double *a, const int *lda, const double *beta,
            double *c, const int *ldc);
void ssyrk_(const char *uplo, const char *trans, const int *n, const int *k, const float *alpha, const float *a, const int *lda, const float *beta,
            float *c, const int *ldc);
void spotrf_(const char *uplo, const int *n, float *a, const int *lda, int *info);
void dsyevr_(const char *jobz, const char *range, const char *uplo, const int *n, double *a, const int *lda, const double *vl, const double *vu,
             const int *il, const int *iu, const double *abstol, int *m, double *w, double *z, const int *ldz, int *isuppz, double *work,
             const int *lwork, int *iwork, const int *liwork, int *info);
void dsygvd_(const int *itype, const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *b, const int *ldb, double *w,
             double *work, const int *lwork, int *iwork, const int *liwork, int *info);
void dgesdd_(const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s, double *u, const int *ldu, double *vt, const int *ldvt,
             double *work, const int *lwork, int *iwork, int *info);
void ssytrd_(const char *uplo, const int *n, float *a, const int *lda, float *d, float *e, float *tau, float *work, const int *lwork, int *info);
void dsterf_(const int *n, double *d, double *e, int *info);

void mica_lapack_begin(void);
const char *mica_lapack_core(void); /* which kernels OpenBLAS chose ("SkylakeX"); static */

#endif
