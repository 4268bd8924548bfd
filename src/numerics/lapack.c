/* numerics/lapack.c: OpenBLAS kept to one thread per call. */
#include "numerics/lapack.h"

#include <pthread.h>

void openblas_set_num_threads(int count);
char *openblas_get_corename(void);

static void limit_threads(void)
{
    openblas_set_num_threads(1);
}

void mica_lapack_begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, limit_threads);
}

const char *mica_lapack_core(void)
{
    return openblas_get_corename();
}
