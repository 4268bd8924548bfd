/* bench_store: how long it takes to open a store with a model of as many tensors as Kimi-K2 and find one of them, to open the whole model as a source of
 * tensors, and, as the peer, to open the same tensors as shards with their index. Writes the shards (names real, each tensor one number) and the
 * store (0.6 GB) in a directory of its own, and removes them. Finding is timed from a new connection each time, as a command does it: the
 * catalogue in the page cache, and dropped from it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <mica/store.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/text.h"
#include "bench.h"
#include "formats/store.h"

enum { SHARDS = 61, EXPERTS = 384, RUNS = 9 };

static const char *directory;
/* One shard: `data` holds a number of its own for each tensor, so that none is another's copy. */
static uint64_t write_shard(int layer, uint32_t *value, mica_text *index) {
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};
    mica_text header = MICA_TEXT_INIT, data = MICA_TEXT_INIT;
    char shard[64];
    uint64_t count = 0;
    snprintf(shard, sizeof shard, "model-%d-of-%d.safetensors", layer + 1, SHARDS);
    mica_text_append(&header, "\0\0\0\0\0\0\0\0", 8);
    for (int expert = 0; expert < EXPERTS; expert++) {
        for (int i = 0; i < 6; i++, count++, ++*value) {
            char name[128];
            snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s.weight%s", layer, expert, projections[i / 2], i % 2 ? "_scale_inv" : "");
            mica_text_printf(&header, "%c\"%s\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}", count ? ',' : '{', name, data.length,
                             data.length + 4);
            mica_text_printf(index, "%s\n\"%s\":\"%s\"", index->length ? "," : "{\"weight_map\":{", name, shard);
            mica_text_append(&data, (const char *)value, 4);
        }
    }
    mica_text_puts(&header, "}");
    const uint64_t length = header.length - 8;
    memcpy(header.bytes, &length, 8);
    mica_text_append(&header, data.bytes, data.length);
    char *path = path_of(directory, shard);
    if (mica_text_failed(&header))
        fail("out of memory");
    check(mica_file_replace(path, header.bytes, header.length, &error));
    mica_free(path);
    mica_text_release(&header);
    mica_text_release(&data);
    return count;
}

static uint64_t write_checkpoint(void) {
    mica_text index = MICA_TEXT_INIT;
    uint64_t count = 0;
    uint32_t value = 1;
    for (int layer = 0; layer < SHARDS; layer++)
        count += write_shard(layer, &value, &index);
    mica_text_puts(&index, "}}");
    char *path = path_of(directory, "model.safetensors.index.json");
    check(mica_file_replace(path, index.bytes, index.length, &error));
    mica_free(path);
    mica_text_release(&index);
    return count;
}

/* From nothing to where a tensor lies. */
static double time_find(const char *store, uint64_t number) {
    char name[128];
    mica_store *opened = NULL;
    mica_stored_model model = {0};
    mica_entry entry;
    bool found = false;
    snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.up_proj.weight", (int)(number * 7 % SHARDS), (int)(number * 101 % EXPERTS));
    const double start = mica_seconds_now();
    mica_status status = mica_store_open(store, &opened, &error);
    if (status == MICA_OK)
        status = mica_catalogue_find_model(mica_store_catalogue(opened), "k2", true, &found, &model, &error);
    if (status == MICA_OK && found)
        status = mica_catalogue_find_entry(mica_store_catalogue(opened), model.id, name, &found, &entry, &error);
    const double seconds = mica_seconds_now() - start;
    check(status);
    if (!found)
        fail("%s: it is not found", name);
    mica_stored_model_release(&model);
    mica_store_close(opened);
    return seconds;
}

static double time_open(const char *path, uint64_t tensors) {
    mica_tensor_source *source = NULL;
    const double start = mica_seconds_now();
    check(mica_tensor_source_open(path, &source, &error));
    const double seconds = mica_seconds_now() - start;
    if (source->tensor_count != tensors)
        fail("%s: tensors are missing", path);
    mica_tensor_source_close(source);
    return seconds;
}

static void least(double *best, double seconds) {
    if (*best == 0 || seconds < *best)
        *best = seconds;
}

int main(void) {
    directory = make_directory();
    const uint64_t tensors = write_checkpoint();
    char *store = path_of(directory, "store"), *model = path_of(directory, "store#k2"), *catalogue = path_of(directory, "store/catalogue.sqlite");
    double start = mica_seconds_now();
    check(mica_import(directory, store, &(mica_import_options){.name = "k2"}, NULL, NULL, &error));
    const double import_seconds = mica_seconds_now() - start;
    double find = 0, cold = 0, open_store = 0, open_shards = 0;
    for (uint64_t i = 0; i < RUNS; i++) {
        drop_from_cache(catalogue);
        least(&cold, time_find(store, 3 * i));
        least(&find, time_find(store, 3 * i + 1));
        least(&open_store, time_open(model, tensors));
        least(&open_shards, time_open(directory, tensors));
    }
    printf("%" PRIu64 " tensors; best of %d\n", tensors, RUNS);
    printf("  store: open and find one           %8.2f ms\n", 1e3 * find);
    printf("  the same, catalogue not in memory  %8.2f ms\n", 1e3 * cold);
    printf("  store: all tensors of the model    %8.1f ms\n", 1e3 * open_store);
    printf("  shards: index and headers (peer)   %8.1f ms\n", 1e3 * open_shards);
    printf("  import of so many small tensors    %8.1f s\n", import_seconds);
    printf("  peak resident                      %8.1f MB\n", 1e-6 * (double)mica_memory_peak_bytes());
    remove_tree(directory);
    mica_free(store);
    mica_free(model);
    mica_free(catalogue);
    return 0;
}
