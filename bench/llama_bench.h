/* bench/llama_bench.h: one figure of llama-bench's CSV. */
#ifndef MICA_BENCH_LLAMA_BENCH_H
#define MICA_BENCH_LLAMA_BENCH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* avg_ts (tokens a second) of the last row; 0 where there is none. Fields may be in quotes. */
static inline double llama_bench_rate(FILE *csv) {
    char line[4096], *values[128] = {NULL};
    double rate = 0;
    int column = -1;
    for (int row = 0; fgets(line, sizeof line, csv); row++) {
        int count = 0;
        for (char *at = line; *at && count < 128; count++) {
            values[count] = *at == '"' ? ++at : at;
            at += strcspn(at, at[-(at > line && at[-1] == '"')] == '"' ? "\"" : ",\n");
            if (*at)
                *at++ = 0;
            at += strspn(at, ",\n");
        }
        for (int i = 0; i < count && row == 0; i++)
            if (strcmp(values[i], "avg_ts") == 0)
                column = i;
        if (row > 0 && column >= 0 && column < count)
            rate = strtod(values[column], NULL);
    }
    return rate;
}

#endif
