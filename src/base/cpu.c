/* base/cpu.c: what the processor has, and what the kernels shall use. Judged by tests/base/test_cpu.c. */
#include "base/cpu.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define VARIABLE "MICA_CPU"

static const char *const names[MICA_CPU_COUNT] = {
#define X(name, text) text,
    MICA_CPU_LIST(X)
#undef X
};

/* What the variable may say: the sets' names, and one more for AVX2's set, with AVX-VNNI. */
static const struct {
    const char *name;
    mica_cpu cpu;
} choices[] = {{"portable", MICA_CPU_PORTABLE}, {"avx2", MICA_CPU_AVX2}, {"avxvnni", MICA_CPU_AVX2}, {"avx512", MICA_CPU_AVX512}};
enum { CHOICES = sizeof choices / sizeof *choices };

static atomic_int selected = -1, bf16 = -1, amx = -1, vnni = -1, sha = -1; /* -1: not yet known */

/* A register of a leaf of CPUID; 0 where there is none. What clang 14's __builtin_cpu_supports has no name for is asked in this way. */
enum { EAX, EBX, ECX, EDX };
static unsigned cpuid(unsigned leaf, unsigned subleaf, int which) {
    unsigned registers[4] = {0};
#if defined(__x86_64__)
    if (!__get_cpuid_count(leaf, subleaf, &registers[EAX], &registers[EBX], &registers[ECX], &registers[EDX]))
        return 0;
#endif
    (void)leaf, (void)subleaf;
    return registers[which];
}

static bool detected_bf16(void) {
    return cpuid(7, 1, EAX) & 1u << 5;
}

static bool detected_vnni(void) {
    return cpuid(7, 1, EAX) & 1u << 4;
}

static bool detected_sha(void) {
    return cpuid(7, 0, EBX) & 1u << 29;
}

#if defined(__x86_64__)
mica_cpu mica_cpu_detected(void) {
    const bool f16c = cpuid(1, 0, ECX) & bit_F16C; /* AVX2 makes sure of the system's support */
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !f16c)
        return MICA_CPU_PORTABLE;
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
                  && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
    return avx512 ? MICA_CPU_AVX512 : MICA_CPU_AVX2;
}

static bool made_by_intel(void) {
    return cpuid(0, 0, EBX) == signature_INTEL_ebx && cpuid(0, 0, ECX) == signature_INTEL_ecx && cpuid(0, 0, EDX) == signature_INTEL_edx;
}
#else
mica_cpu mica_cpu_detected(void) {
    return MICA_CPU_PORTABLE;
}

static bool made_by_intel(void) {
    return false;
}
#endif

/* The system must save tiles (XCR0), and Linux lets a process use them that asked: their 8 KiB then are part of each thread's state. */
static bool system_allows_tiles(void) {
#if defined(__x86_64__) && defined(__linux__)
    const unsigned tiles = 3u << 17;
    const long request_permission = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tile_data = 18;
    unsigned low, high;
    if (!(cpuid(1, 0, ECX) & bit_OSXSAVE))
        return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & tiles) == tiles && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

static bool detected_amx(void) {
    const unsigned wanted = 1u << 22 | 1u << 24; /* AMX-BF16, AMX-TILE */
    return detected_bf16() && (cpuid(7, 0, EDX) & wanted) == wanted && system_allows_tiles();
}

/* The detected set, lowered by MICA_CPU. A value that names no set is as if absent: who can tell it asks mica_environment_check. */
static mica_cpu first_choice(void) {
    mica_cpu detected = mica_cpu_detected();
    const char *wanted = getenv(VARIABLE);
    for (int i = 0; wanted && i < CHOICES; i++) {
        if (strcmp(wanted, choices[i].name) == 0 && choices[i].cpu < detected)
            return choices[i].cpu;
    }
    return detected;
}

mica_status mica_environment_check(mica_error *error) {
    const char *wanted = getenv(VARIABLE);
    char known[64] = "";
    for (int i = 0; wanted && *wanted && i < CHOICES; i++) {
        if (strcmp(wanted, choices[i].name) == 0)
            return MICA_OK;
        size_t length = strlen(known);
        snprintf(known + length, sizeof known - length, "%s%s", i ? ", " : "", choices[i].name);
    }
    return *known ? mica_fail(error, MICA_USAGE, VARIABLE ": expected one of %s, got '%s'", known, wanted) : MICA_OK;
}

mica_cpu mica_cpu_current(void) {
    int cpu = atomic_load(&selected);
    if (cpu < 0) { /* two threads may both come here: they store the same */
        cpu = (int)first_choice();
        atomic_store(&selected, cpu);
    }
    return (mica_cpu)cpu;
}

/* What `detected` says, asked once. */
static bool known(atomic_int *what, bool (*detected)(void)) {
    int value = atomic_load(what);
    if (value < 0) {
        value = detected();
        atomic_store(what, value);
    }
    return value;
}

static bool quick_bf16(void) {
    return detected_bf16() && !made_by_intel();
}

bool mica_cpu_has_bf16(void) {
    return known(&bf16, quick_bf16) && mica_cpu_current() == MICA_CPU_AVX512;
}

bool mica_cpu_has_amx(void) {
    return known(&amx, detected_amx) && mica_cpu_current() == MICA_CPU_AVX512;
}

static bool wanted_vnni(void) {
    const char *wanted = getenv(VARIABLE);
    return detected_vnni() && !(wanted && strcmp(wanted, names[MICA_CPU_AVX2]) == 0);
}

bool mica_cpu_has_vnni(void) {
    return known(&vnni, wanted_vnni) && mica_cpu_current() == MICA_CPU_AVX2;
}

bool mica_cpu_has_sha(void) {
    return known(&sha, detected_sha) && mica_cpu_current() != MICA_CPU_PORTABLE;
}

void mica_cpu_allow_bf16(bool allow) {
    atomic_store(&bf16, allow && detected_bf16());
}

void mica_cpu_allow_amx(bool allow) {
    atomic_store(&amx, allow && detected_amx());
}

void mica_cpu_allow_vnni(bool allow) {
    atomic_store(&vnni, allow && detected_vnni());
}

const char *mica_cpu_name(mica_cpu cpu) {
    return (unsigned)cpu < MICA_CPU_COUNT ? names[cpu] : "unknown";
}

void mica_cpu_select(mica_cpu cpu) {
    mica_cpu detected = mica_cpu_detected();
    atomic_store(&selected, (int)(cpu < detected ? cpu : detected));
}
