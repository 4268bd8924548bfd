/* base/cpu.h: which instruction set the kernels use. Chosen once, at first use; MICA_CPU=portable|avx2|avxvnni|avx512 (the one documented
 * debug variable; mica_environment_check tells of another value) lowers it, never raises it; avxvnni is AVX2 with AVX-VNNI, avx2 without.
 * Results are bit-identical across thread counts, and with or without AVX-VNNI, not across these. */
#ifndef MICA_BASE_CPU_H
#define MICA_BASE_CPU_H

#include <stdbool.h>

#include "base/error.h"

/* name; each needs all before it. AVX512 = F, BW, DQ, VL, VBMI and VNNI. */
#define MICA_CPU_LIST(X) X(PORTABLE, "portable") X(AVX2, "avx2") X(AVX512, "avx512")

typedef enum mica_cpu {
#define X(name, text) MICA_CPU_##name,
    MICA_CPU_LIST(X)
#undef X
    MICA_CPU_COUNT
} mica_cpu;

mica_cpu mica_cpu_current(void);
mica_cpu mica_cpu_detected(void);       /* what the processor has */
/* Beyond the sets, on a processor whose current set is AVX512. Both round products' operands to bf16. */
bool mica_cpu_has_bf16(void); /* AVX512_BF16 where it is quick: Intel's multiplies 85 GFLOP/s where its float32 does 172 (Emerald Rapids, 2.7 GHz) */
bool mica_cpu_has_amx(void);  /* AMX with bf16 (Sapphire Rapids and later), if the system lets this process have it: asks for it */
/* AVX-VNNI, on a processor whose current set is AVX2: what adds products as it makes them, to the same results. */
bool mica_cpu_has_vnni(void);
bool mica_cpu_has_sha(void);            /* SHA-256's instructions, where the current set is not PORTABLE; libcrypto goes its own way */
const char *mica_cpu_name(mica_cpu cpu);
void mica_cpu_select(mica_cpu cpu);     /* for tests: at most the detected one; not while kernels run */
void mica_cpu_allow_bf16(bool allow);   /* for tests, likewise; wherever the processor has it, quick or not */
void mica_cpu_allow_amx(bool allow);    /* likewise */
void mica_cpu_allow_vnni(bool allow);   /* likewise */

#endif
