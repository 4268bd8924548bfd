/* base/memory.c: the one door to the allocator. A counter at the door lets tests fail any allocation.
 * libcrypto's digest contexts are the exception: it has its own allocator. Judged by tests/base/test_memory.c. */
#include "base/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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
