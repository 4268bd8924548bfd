/* tests/interop/write_gguf PATH SPLIT-BYTES ALIGNMENT: a GGUF file of random tensors of every type, written by four threads through mica's
 * writer, for gguf_written.py: its bytes are a function of the arguments alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/threads.h"
#include "formats/gguf_write.h"

enum { THREADS = 4, ROWS = 6, COLUMNS = 512 };

typedef struct job {
    const mica_gguf_layout *layout;
    mica_gguf_writer *writer;
    uint32_t thread;
    mica_status status;
} job;

/* The bytes of a tensor: 0 to 63, from its number on, so that halves are finite. */
static void *write_some(void *context) {
    job *mine = context;
    for (uint64_t i = mine->thread; i < mine->layout->tensor_count; i += THREADS) {
        const mica_gguf_tensor *tensor = &mine->layout->tensors[i];
        uint8_t *bytes = malloc(tensor->bytes + 1);
        if (!bytes)
            return NULL;
        for (uint64_t j = 0; j < tensor->bytes; j++)
            bytes[j] = (uint8_t)((tensor->number * 11 + j * 7 + j / 64) % 64);
        for (uint64_t at = 0; at < tensor->bytes && mine->status == MICA_OK; at += 1000)
            mine->status = mica_gguf_writer_put(mine->writer, tensor, at, bytes + at, tensor->bytes - at < 1000 ? tensor->bytes - at : 1000,
                                                NULL);
        free(bytes);
    }
    return NULL;
}

static void add_metadata(mica_gguf_metadata *metadata, uint32_t alignment) {
    static const int32_t integers[] = {1, -2, 3};
    static const float floats[] = {0.5f, -1.25f};
    static const char *const words[] = {"a", "", "\xc3\xbc\xe2\x82\xac\xf0\x90\x8d\x88 \n"};
    mica_gguf_add_string(metadata, "general.architecture", "test");
    if (alignment != 32)
        mica_gguf_add_u32(metadata, "general.alignment", alignment);
    mica_gguf_add_u8(metadata, "test.u8", 250);
    mica_gguf_add_u16(metadata, "test.u16", 65000);
    mica_gguf_add_u32(metadata, "test.u32", 4000000000u);
    mica_gguf_add_i32(metadata, "test.i32", -2000000000);
    mica_gguf_add_u64(metadata, "test.u64", (UINT64_C(1) << 63) + 5);
    mica_gguf_add_f32(metadata, "test.f32", 0.1f);
    mica_gguf_add_bool(metadata, "test.bool", true);
    mica_gguf_add_array(metadata, "test.ints", MICA_GGUF_INT32, integers, 3);
    mica_gguf_add_array(metadata, "test.floats", MICA_GGUF_FLOAT32, floats, 2);
    mica_gguf_add_strings(metadata, "test.strings", 3);
    for (int i = 0; i < 3; i++)
        mica_gguf_add_element(metadata, words[i], strlen(words[i]));
}

int main(int argc, char **argv) {
    static char names[MICA_DTYPE_COUNT][32];
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    mica_gguf_writer *writer;
    mica_error error = {0};
    uint64_t count = 0;
    mica_gguf_tensor *tensors = mica_calloc(MICA_DTYPE_COUNT, sizeof *tensors);
    if (argc != 4 || !tensors)
        return 2;
    for (mica_dtype dtype = 0; dtype < MICA_DTYPE_COUNT; dtype++) {
        if (mica_dtype_ggml(dtype) < 0)
            continue;
        snprintf(names[dtype], sizeof names[dtype], "blk.0.%s.weight", mica_dtype_name(dtype));
        tensors[count] = (mica_gguf_tensor){
            .name = names[dtype], .dtype = dtype, .rank = 3, .shape = {2, ROWS / 2, COLUMNS}, .number = count};
        count++;
    }
    tensors[0].rank = 1; /* F64 */
    tensors[0].shape[0] = 5;
    add_metadata(&metadata, (uint32_t)atoi(argv[3]));
    mica_status status = mica_gguf_layout_make(tensors, count, &metadata, (uint64_t)atoll(argv[2]), &layout, &error);
    if (status == MICA_OK)
        status = mica_gguf_writer_open(argv[1], &layout, true, &writer, &error);
    if (status == MICA_OK) {
        job jobs[THREADS];
        pthread_t threads[THREADS];
        for (uint32_t i = 0; i < THREADS; i++) {
            jobs[i] = (job){&layout, writer, i, MICA_OK};
            if (pthread_create(&threads[i], NULL, write_some, &jobs[i]) != 0)
                return 1;
        }
        for (uint32_t i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
            status = jobs[i].status != MICA_OK ? jobs[i].status : status;
        }
        status = status == MICA_OK ? mica_gguf_writer_finish(writer, &error) : status;
        mica_gguf_layout_release(&layout);
    }
    mica_gguf_metadata_release(&metadata);
    if (status != MICA_OK)
        fprintf(stderr, "%s\n", error.message);
    return mica_status_exit(status);
}
