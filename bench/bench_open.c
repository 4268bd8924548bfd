/* bench_open: how long opening takes for a checkpoint with as many tensors as Kimi-K2: 61 shards, 140,000 tensors, real names and shapes.
 * Writes index and sparse shards of 1 TB in a directory of its own, opens them some times, prints one table, removes them. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/text.h"
#include "bench.h"
#include "formats/index.h"
#include "formats/tensor_source.h"

enum { SHARDS = 61, EXPERTS = 384, RUNS = 7 };

static const char *directory;
static void write_file(const char *name, uint64_t length_prefix, const mica_text *text, uint64_t data_bytes) {
    char *path = path_of(directory, name);
    FILE *file = fopen(path, "wb");
    if (!file || (length_prefix && fwrite(&length_prefix, 8, 1, file) != 1) || fwrite(text->bytes, 1, text->length, file) != text->length ||
        fclose(file) != 0 || (data_bytes && truncate(path, (off_t)(8 + length_prefix + data_bytes)) != 0)) {
        fail("%s: cannot write it: %m", path);
    }
    mica_free(path);
}

static void add(mica_text *header, mica_text *index, const char *shard, const char *name, const char *dtype, uint64_t rows,
                uint64_t columns, uint64_t element_bytes, uint64_t *offset) {
    uint64_t end = *offset + rows * columns * element_bytes;
    mica_text_printf(header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRIu64 ",%" PRIu64 "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                     header->length ? "," : "{", name, dtype, rows, columns, *offset, end);
    mica_text_printf(index, "%s\n    \"%s\": \"%s\"", index->length ? "," : "{\n  \"metadata\": {},\n  \"weight_map\": {", name, shard);
    *offset = end;
}

/* Returns the number of tensors. */
static uint64_t write_checkpoint(uint64_t *header_bytes, uint64_t *index_bytes) {
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};
    mica_text index = MICA_TEXT_INIT;
    uint64_t count = 0;
    *header_bytes = 0;
    for (int layer = 0; layer < SHARDS; layer++) {
        mica_text header = MICA_TEXT_INIT;
        char shard[64], name[128];
        uint64_t offset = 0;
        snprintf(shard, sizeof shard, "model-%d-of-%d.safetensors", layer + 1, SHARDS);
        for (int expert = 0; expert < EXPERTS; expert++) {
            for (int i = 0; i < 3; i++, count += 2) {
                uint64_t rows = i == 2 ? 7168 : 2048, columns = i == 2 ? 2048 : 7168;
                snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s.weight", layer, expert, projections[i]);
                add(&header, &index, shard, name, "F8_E4M3", rows, columns, 1, &offset);
                strcat(name, "_scale_inv");
                add(&header, &index, shard, name, "F32", rows / 128, columns / 128, 4, &offset);
            }
        }
        mica_text_puts(&header, "}");
        write_file(shard, header.length, &header, offset);
        *header_bytes += header.length;
        mica_text_release(&header);
    }
    mica_text_puts(&index, "\n  }\n}\n");
    write_file("model.safetensors.index.json", 0, &index, 0);
    *index_bytes = index.length;
    mica_text_release(&index);
    return count;
}

static void remove_checkpoint(void) {
    char **names = NULL;
    uint64_t count = 0;
    if (mica_directory_list(directory, &names, &count, NULL) != MICA_OK) {
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        char *path = path_of(directory, names[i]);
        unlink(path);
        mica_free(path);
        mica_free(names[i]);
    }
    mica_free(names);
    rmdir(directory);
}

static double time_index(void) {
    char *path = path_of(directory, "model.safetensors.index.json"), *json = NULL;
    uint64_t length = 0;
    mica_index index;
    double start = mica_seconds_now();
    check(mica_file_load(path, UINT64_MAX, &json, &length, &error));
    check(mica_index_parse(path, json, length, &index, &error));
    double seconds = mica_seconds_now() - start;
    mica_index_release(&index);
    mica_free(json);
    mica_free(path);
    return seconds;
}

static double time_open(uint64_t tensors, double *find_seconds) {
    mica_tensor_source *source = NULL;
    double start = mica_seconds_now();
    check(mica_tensor_source_open(directory, &source, &error));
    double opened = mica_seconds_now();
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        if (mica_tensor_source_find(source, source->tensors[i * 7919 % tensors].name) == NULL)
            fail("a tensor is not found");
    }
    *find_seconds = mica_seconds_now() - opened;
    if (source->tensor_count != tensors)
        fail("tensors are missing");
    mica_tensor_source_close(source);
    return opened - start;
}

int main(void) {
    directory = make_directory();
    uint64_t header_bytes, index_bytes, tensors = write_checkpoint(&header_bytes, &index_bytes);
    double index = 1e9, open = 1e9, find = 1e9;
    for (int i = 0; i < RUNS; i++) {
        double find_seconds, index_seconds = time_index(), open_seconds = time_open(tensors, &find_seconds);
        index = index_seconds < index ? index_seconds : index;
        open = open_seconds < open ? open_seconds : open;
        find = find_seconds < find ? find_seconds : find;
    }
    remove_checkpoint();
    printf("%" PRIu64 " tensors in %d shards; best of %d\n", tensors, SHARDS, RUNS);
    printf("  index alone    %8.1f ms   %6.1f MB of JSON\n", 1e3 * index, 1e-6 * (double)index_bytes);
    printf("  whole opening  %8.1f ms   %6.1f MB of headers and the index\n", 1e3 * open, 1e-6 * (double)(header_bytes + index_bytes));
    printf("  find           %8.0f ns   each, in random order\n", 1e9 * find / (double)tensors);
    printf("  peak resident  %8.1f MB\n", 1e-6 * (double)mica_memory_peak_bytes());
    return 0;
}
