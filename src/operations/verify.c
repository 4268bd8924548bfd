/* operations/verify.c: mica_verify: a vindex, a store, or a checkpoint (a model of a store is one)? Each has a file of its own. Judged by
 * tests/operations/test_vindex_verify.c. */
#include "operations/verify.h"

#include "base/file.h"
#include "base/text.h"
#include "formats/store.h"
#include "formats/vindex.h"

/* By the names only a vindex has: a damaged one is still one. */
static bool has_vindex_files(const char *path) {
    static const char *const names[] = {MICA_VINDEX_JOURNAL, MICA_VINDEX_CHECKSUMS, MICA_VINDEX_INDEX, MICA_VINDEX_PHASE1};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (mica_directory_has(path, names[i]))
            return true;
    return false;
}

mica_status mica_verify(const char *path, const mica_verify_options *options, char **text, char **json, mica_error *error) {
    const mica_verify_options defaults = {0};
    if (!options)
        options = &defaults;
    if (mica_path_is_directory(path) && has_vindex_files(path))
        return mica_verify_vindex(path, options, text, json, error);
    if (mica_store_is_at(path))
        return mica_verify_store(path, options, text, json, error);
    return mica_verify_checkpoint(path, options, text, json, error);
}
