/* tests/interop/write_vocabulary.c: write_vocabulary CHECKPOINT FILE.gguf: a GGUF that has a checkpoint's tokenizer and nothing else but
 * one number, for llama.cpp to tokenise with. */
#include <mica/tokenizer.h>
#include <stdio.h>

#include "base/memory.h"
#include "model/tokenizer.h"

int main(int count, char **arguments) {
    mica_tokenizer *tokenizer;
    mica_error error;
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    mica_gguf_writer *writer;
    mica_gguf_tensor *tensor = mica_calloc(1, sizeof *tensor);
    float zero = 0;
    if (count != 3 || !tensor) {
        fprintf(stderr, "usage: %s CHECKPOINT FILE.gguf\n", arguments[0]);
        return 2;
    }
    *tensor = (mica_gguf_tensor){.name = "nothing", .dtype = MICA_F32, .rank = 1, .shape = {1}};
    mica_gguf_add_string(&metadata, "general.architecture", "llama");
    if (mica_tokenizer_open(arguments[1], &tokenizer, &error) != MICA_OK ||
        mica_tokenizer_add_to_gguf(tokenizer, &metadata, &error) != MICA_OK ||
        mica_gguf_layout_make(tensor, 1, &metadata, 0, &layout, &error) != MICA_OK ||
        mica_gguf_writer_open(arguments[2], &layout, true, &writer, &error) != MICA_OK ||
        mica_gguf_writer_put(writer, &layout.tensors[0], 0, &zero, sizeof zero, &error) != MICA_OK ||
        mica_gguf_writer_finish(writer, &error) != MICA_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&metadata);
    mica_tokenizer_close(tokenizer);
    return 0;
}
