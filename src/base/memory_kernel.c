/* base/memory_kernel.c: what the kernel says of memory: what the process has, had at most, and may take. Its files are no input of the library's:
 * they pass by the seam of base/file. Judged by tests/base/test_memory.c. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/memory.h"

#define PATH_BYTES 1024

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

/* The number behind `key`, a line's first word; 0: it has none. */
static uint64_t number_of(const char *text, const char *key) {
    const size_t length = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) == 0 && line[length] == ' ')
            return strtoull(line + length, NULL, 10);
    }
    return 0;
}

typedef struct group_files { /* of one version of control groups */
    const char *directory, *limit, *used, *inactive, *active;
} group_files;

/* What one group leaves: its limit less what is used there; cached files are no use, they go when memory is wanted. UINT64_MAX: no limit. */
static uint64_t group_leaves(const group_files *files, const char *root, const char *group) {
    char path[PATH_BYTES], limit[64], used[64], statistics[8192];
    const struct {
        const char *name;
        char *text;
        size_t bytes;
    } parts[] = {{files->limit, limit, sizeof limit}, {files->used, used, sizeof used}, {"memory.stat", statistics, sizeof statistics}};
    for (size_t i = 0; i < 3; i++) {
        int length = snprintf(path, sizeof path, "%s%s%s/%s", root, files->directory, group, parts[i].name);
        if (length < 0 || (size_t)length >= sizeof path || !read_kernel_file(path, parts[i].text, parts[i].bytes))
            return UINT64_MAX;
    }
    if (strncmp(limit, "max", 3) == 0)
        return UINT64_MAX;
    uint64_t most = strtoull(limit, NULL, 10), taken = strtoull(used, NULL, 10);
    uint64_t cached = number_of(statistics, files->inactive) + number_of(statistics, files->active);
    taken = taken > cached ? taken - cached : 0;
    return most > taken ? most - taken : 0;
}

/* Is `name` one of "cpu,memory"? */
static bool is_among(const char *list, const char *name) {
    const size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == '\0'))
            return true;
    }
    return false;
}

/* Of "/a/b" makes "/a", of "/a" "/"; false: there is no more. */
static bool to_parent(char *group) {
    char *end = strrchr(group, '/');
    if (!end || strcmp(group, "/") == 0)
        return false;
    end[end == group] = 0;
    return true;
}

uint64_t mica_control_group_bytes(const char *groups, const char *root) {
    static const group_files second = {"", "memory.max", "memory.current", "inactive_file", "active_file"},
                             first = {"/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file"};
    char text[8192];
    uint64_t least = UINT64_MAX;
    if (!read_kernel_file(groups, text, sizeof text))
        return least;
    for (char *line = text, *next; *line; line = next) { /* "4:cpu,memory:/path"; of version 2 "0::/path" */
        next = line + strcspn(line, "\n");
        if (*next)
            *next++ = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        const group_files *files = controllers[1] == '\0' ? &second : is_among(controllers + 1, "memory") ? &first : NULL;
        for (bool more = files != NULL; more; more = to_parent(group)) { /* to the root, which in a container is its own group */
            uint64_t leaves = group_leaves(files, root, strcmp(group, "/") == 0 ? "" : group);
            least = leaves < least ? leaves : least;
        }
    }
    return least;
}

uint64_t mica_memory_available_bytes(void) {
    char text[1024];
    const char *found = read_kernel_file("/proc/meminfo", text, sizeof text) ? strstr(text, "MemAvailable:") : NULL;
    if (!found)
        return 0;
    uint64_t machine = strtoull(found + strlen("MemAvailable:"), NULL, 10) * 1024, group = mica_control_group_bytes("/proc/self/cgroup", "/sys/fs/cgroup");
    return machine < group ? machine : group;
}
