/* replay DIRECTORY: runs every file of a corpus through one target, in any build. An empty corpus is a failure. */
#include "base/file.h"
#include "base/memory.h"
#include "fuzz.h"

static void run(const char *directory, const char *name) {
    mica_error error;
    char *path = mica_path_join(directory, name), *bytes = NULL;
    uint64_t length = 0;
    if (!path || mica_file_load(path, 1 << 24, &bytes, &length, &error) != MICA_OK) {
        fprintf(stderr, "replay: %s\n", path ? error.message : "out of memory");
        exit(1);
    }
    uint8_t *exact = malloc(length ? length : 1); /* without the closing NUL, so that a sanitizer sees a read past the end */
    FUZZ_CHECK(exact);
    memcpy(exact, bytes, length);
    LLVMFuzzerTestOneInput(exact, length);
    free(exact);
    mica_free(bytes);
    mica_free(path);
}

int main(int count, char **arguments) {
    char **names = NULL;
    uint64_t files = 0;
    mica_error error;
    if (count != 2) {
        fprintf(stderr, "usage: %s CORPUS\n", arguments[0]);
        return 2;
    }
    if (mica_directory_list(arguments[1], &names, &files, &error) != MICA_OK) {
        fprintf(stderr, "replay: %s\n", error.message);
        return 1;
    }
    for (uint64_t i = 0; i < files; i++) {
        run(arguments[1], names[i]);
        mica_free(names[i]);
    }
    mica_free(names);
    printf("%d inputs of %s\n", (int)files, arguments[1]);
    return files == 0;
}
