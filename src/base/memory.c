/* base/memory.c: the one door to the allocator. A counter at the door lets tests fail any allocation.
 * libcrypto's digest contexts are the exception: it has its own allocator. Judged by tests/base/test_memory.c. */
#include "base/memory.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGE_BYTES ((size_t)4096)
#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define HUGE_FROM_BYTES ((size_t)4 << 20)

static atomic_uint_fast64_t allocations;
static atomic_uint_fast64_t fail_from, fail_to; /* the numbers that fail: from `from` up to `to`, exclusive */

static bool admitted(void) {
    uint64_t number = atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed) + 1;
    return number < atomic_load_explicit(&fail_from, memory_order_relaxed) ||
           number >= atomic_load_explicit(&fail_to, memory_order_relaxed);
}

uint64_t mica_memory_fail_after(uint64_t allocation_count) {
    atomic_store(&fail_from, allocation_count);
    atomic_store(&fail_to, allocation_count ? UINT64_MAX : 0);
    return atomic_exchange(&allocations, 0);
}

uint64_t mica_memory_fail_only(uint64_t allocation_count) {
    atomic_store(&fail_from, allocation_count);
    atomic_store(&fail_to, allocation_count ? allocation_count + 1 : 0);
    return atomic_exchange(&allocations, 0);
}

/* Sizes beyond PTRDIFF_MAX never reach the allocator: sanitizers end the process over them. */
static bool fits(size_t count, size_t bytes) {
    size_t product;
    return !__builtin_mul_overflow(count, bytes, &product) && product <= PTRDIFF_MAX;
}

/* Of zero bytes one is allocated, so that NULL always means out of memory. */
void *mica_malloc(size_t bytes) {
    return admitted() && fits(bytes, 1) ? malloc(bytes ? bytes : 1) : NULL;
}

void *mica_calloc(size_t count, size_t bytes) {
    if (!admitted() || !fits(count, bytes))
        return NULL;
    return count && bytes ? calloc(count, bytes) : calloc(1, 1);
}

void *mica_reallocarray(void *pointer, size_t count, size_t bytes) {
    if (!admitted() || !fits(count, bytes))
        return NULL;
    return count && bytes ? reallocarray(pointer, count, bytes) : reallocarray(pointer, 1, 1);
}

void mica_free(void *pointer) {
    free(pointer);
}

char *mica_strndup(const char *text, size_t bytes) {
    size_t length = strnlen(text, bytes);
    char *copy = mica_malloc(length + 1);
    if (copy) {
        memcpy(copy, text, length);
        copy[length] = 0;
    }
    return copy;
}

char *mica_strdup(const char *text) {
    return mica_strndup(text, strlen(text));
}

/* In the page before an aligned block: what to give back. */
typedef struct block_header {
    void *base;
    size_t mapped_bytes; /* 0: from the allocator */
} block_header;

/* Large blocks are mapped: their pages come zeroed when they are first touched, and what is never touched costs nothing. (Not under a
 * sanitizer, which watches the allocator's blocks.) */
static void *map_block(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)bytes;
    return NULL;
#else
    size_t total = bytes + 2 * HUGE_PAGE_BYTES;
    char *base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    char *pointer = base + HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES; /* at least a page behind base */
    (void)madvise(pointer, bytes, MADV_HUGEPAGE); /* before the first touch; a hint, its failure costs only speed */
    *(block_header *)(pointer - PAGE_BYTES) = (block_header){base, total};
    return pointer;
#endif
}

void *mica_alloc_aligned(size_t bytes) {
    if (!admitted() || !fits(bytes, 1) || bytes > PTRDIFF_MAX - 3 * HUGE_PAGE_BYTES)
        return NULL;
    size_t alignment = bytes >= HUGE_FROM_BYTES ? HUGE_PAGE_BYTES : PAGE_BYTES;
    size_t rounded = bytes ? (bytes + alignment - 1) / alignment * alignment : alignment;
    char *pointer = alignment == HUGE_PAGE_BYTES ? map_block(rounded) : NULL;
    if (pointer)
        return pointer;
    void *base = NULL;
    if (posix_memalign(&base, alignment, alignment + rounded) != 0)
        return NULL;
    pointer = (char *)base + alignment;
    *(block_header *)(pointer - PAGE_BYTES) = (block_header){base, 0};
    memset(pointer, 0, rounded);
    return pointer;
}

void mica_free_aligned(void *pointer) {
    if (!pointer)
        return;
    block_header header = *(block_header *)((char *)pointer - PAGE_BYTES);
    if (header.mapped_bytes)
        munmap(header.base, header.mapped_bytes);
    else
        free(header.base);
}

bool mica_mul_u64(uint64_t a, uint64_t b, uint64_t *result) {
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *result = product;
    return true;
}

bool mica_add_u64(uint64_t a, uint64_t b, uint64_t *result) {
    uint64_t sum;
    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *result = sum;
    return true;
}

/* ---- what the kernel says of memory. Its files are no input of the library's: they pass by the seam of base/file. */

static bool read_kernel_file(const char *path, char *text, size_t bytes) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, bytes - 1) : -1;
    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = 0;
    return got > 0;
}

uint64_t mica_memory_resident_bytes(void) {
    char text[256], *second = NULL;
    if (!read_kernel_file("/proc/self/statm", text, sizeof text) || !(second = strchr(text, ' ')))
        return 0;
    return strtoull(second, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Not getrusage's: its ru_maxrss is at least what the process that called this program had in memory when it did. */
uint64_t mica_memory_peak_bytes(void) {
    char text[4096];
    const char *found = read_kernel_file("/proc/self/status", text, sizeof text) ? strstr(text, "\nVmHWM:") : NULL;
    struct rusage usage;
    if (found)
        return strtoull(found + strlen("\nVmHWM:"), NULL, 10) * 1024;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

/* The limit of the control group that the process is in, less what is used there. */
static uint64_t control_group_bytes(void) {
    char line[512], path[640], text[64];
    if (!read_kernel_file("/proc/self/cgroup", line, sizeof line) || strncmp(line, "0::", 3) != 0)
        return UINT64_MAX;
    line[strcspn(line, "\n")] = 0;
    static const char *const names[] = {"memory.max", "memory.current"};
    uint64_t values[2] = {UINT64_MAX, 0};
    for (int i = 0; i < 2; i++) {
        strcpy(path, "/sys/fs/cgroup");
        strcat(path, line + 3);
        strcat(path, "/");
        strcat(path, names[i]);
        if (!read_kernel_file(path, text, sizeof text) || strncmp(text, "max", 3) == 0)
            return UINT64_MAX;
        values[i] = strtoull(text, NULL, 10);
    }
    return values[0] > values[1] ? values[0] - values[1] : 0;
}

uint64_t mica_memory_available_bytes(void) {
    char text[1024];
    const char *found = read_kernel_file("/proc/meminfo", text, sizeof text) ? strstr(text, "MemAvailable:") : NULL;
    if (!found)
        return 0;
    uint64_t machine = strtoull(found + strlen("MemAvailable:"), NULL, 10) * 1024, group = control_group_bytes();
    return machine < group ? machine : group;
}
