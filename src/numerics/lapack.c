/* numerics/lapack.c: OpenBLAS found, told which kernels to use, and kept to one thread per call. See lapack.h. */
#include "numerics/lapack.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

mica_lapack mica_blas;

static char failure[256];

/* OpenBLAS's name for kernels of an instruction set; NULL: its own choice. */
static const char *core_of(mica_cpu cpu) {
#if defined(__x86_64__)
    static const char *const cores[MICA_CPU_COUNT] = {
        [MICA_CPU_PORTABLE] = "Prescott", [MICA_CPU_AVX2] = "Haswell", [MICA_CPU_AVX512] = "SkylakeX"};
    return cores[cpu];
#else
    (void)cpu;
    return NULL;
#endif
}

static void *open_library(void) {
    static const char *const names[] = {"libopenblas.so.0", "libopenblas.so"};
    void *library = NULL;
    for (size_t i = 0; !library && i < sizeof names / sizeof *names; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

/* A function pointer out of dlsym's object pointer, as POSIX wants it. */
static void find(void *library, const char *name, void *pointer) {
    void *symbol = dlsym(library, name);
    memcpy(pointer, &symbol, sizeof symbol);
    if (!symbol && !failure[0])
        snprintf(failure, sizeof failure, "OpenBLAS has no %s", name);
}

/* Sets a variable that OpenBLAS reads when it is loaded, unless the user has; true when it is ours to unset. */
static int lend(const char *variable, const char *value) {
    return value && !getenv(variable) && setenv(variable, value, 1) == 0;
}

static void load(void) {
    static const char core[] = "OPENBLAS_CORETYPE", threads[] = "OPENBLAS_NUM_THREADS";
    int own_core = lend(core, core_of(mica_cpu_current())), own_threads = lend(threads, "1"); /* else it starts threads that spin */
    void *library = open_library();
    if (own_core)
        unsetenv(core);
    if (own_threads)
        unsetenv(threads);
    if (!library) {
        snprintf(failure, sizeof failure, "OpenBLAS cannot be loaded: %s", dlerror());
        return;
    }
#define X(name, parameters) find(library, #name, &mica_blas.name);
    MICA_LAPACK_LIST(X)
#undef X
    void (*set_threads)(int) = NULL;
    char *(*core_name)(void) = NULL, *(*configuration)(void) = NULL;
    find(library, "openblas_set_num_threads", &set_threads);
    find(library, "openblas_get_corename", &core_name);
    find(library, "openblas_get_config", &configuration);
    if (failure[0])
        return;
    set_threads(1);
    mica_blas.core = core_name();
    if (sscanf(configuration(), "OpenBLAS %31s", mica_blas.version) != 1)
        snprintf(mica_blas.version, sizeof mica_blas.version, "unknown");
}

mica_status mica_lapack_load(mica_error *error) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return failure[0] ? mica_fail(error, MICA_FAILED, "%s", failure) : MICA_OK;
}
