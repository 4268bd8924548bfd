/* base/memory.h: every allocation of the library passes here, so that a test can make any of them fail. */
#ifndef MICA_BASE_MEMORY_H
#define MICA_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* NULL when out of memory; mica_free accepts NULL. mica_calloc and mica_reallocarray check their product. */
void *mica_malloc(size_t bytes);
void *mica_calloc(size_t count, size_t bytes);
void *mica_reallocarray(void *pointer, size_t count, size_t bytes);
void mica_free(void *pointer);
char *mica_strdup(const char *text);
char *mica_strndup(const char *text, size_t bytes);

/* Page-aligned (4096; 2 MiB with a huge-page hint from 4 MiB on), zeroed; free with mica_free_aligned. */
void *mica_alloc_aligned(size_t bytes);
void mica_free_aligned(void *pointer);

/* Checked arithmetic: false on overflow, *result untouched then. */
bool mica_mul_u64(uint64_t a, uint64_t b, uint64_t *result);
bool mica_add_u64(uint64_t a, uint64_t b, uint64_t *result);

/* Fault seam, for tests: the n-th allocation from now on fails, and all after it (`after`) or none but it (`only`: what swallows a failure
 * shows, as the next one would have told it); 0 switches it off. Returns how many allocations were made since the last call of either.
 * Not thread-safe while others allocate. */
uint64_t mica_memory_fail_after(uint64_t allocation_count);
uint64_t mica_memory_fail_only(uint64_t allocation_count);

/* What the process has in memory now (of /proc/self/statm; 0 where there is none), and what it could take: memory that the machine has to
 * give without swapping, within the limit of its control group. 0: not known. */
uint64_t mica_memory_resident_bytes(void);
uint64_t mica_memory_available_bytes(void);
/* What the process's control groups leave it, of both versions, with all that they are in; UINT64_MAX: they set no limit. `groups` is
 * /proc/self/cgroup, `root` where they are mounted, /sys/fs/cgroup; for tests. */
uint64_t mica_control_group_bytes(const char *groups, const char *root);

/* The most that the process had in memory, in bytes (VmHWM of /proc/self/status). */
uint64_t mica_memory_peak_bytes(void);

#endif
