/* formats/store.h: the directory of a store: its lock, its packs, its catalogue, and the order in which they are written.
 *
 * A pack: a header of 4 KiB, then payloads, each at a multiple of 4 KiB with zeros up to the next; docs/formats.md has the bytes.
 * Invariants: 1. one writer at a time (flock on the directory), readers any time and never blocked; 2. payloads are appended, never
 * overwritten once the catalogue names them; 3. packs are synced before the transaction that names their bytes commits; 4. a pack's file is
 * removed only after the transaction that forgets it; 5. a number of a pack is never used again.
 * So a kill leaves at most bytes behind a pack's recorded end and packs nobody names: the next writer removes both.
 * Judged by tests/operations/test_import.c, tests/faults/kill_store.sh, tests/faults/test_store_faults.c. */
#ifndef MICA_FORMATS_STORE_H
#define MICA_FORMATS_STORE_H

#include "base/file.h"
#include "formats/catalogue.h"
#include "formats/tensor_source.h"

#define MICA_PACK_ALIGNMENT ((uint64_t)4096)
#define MICA_PACK_HEADER_BYTES MICA_PACK_ALIGNMENT
#define MICA_PACK_BYTES_DEFAULT ((uint64_t)8 << 30) /* a terabyte is 125 open files then */
#define MICA_PACKS_DIRECTORY "packs"

/* The next multiple of the alignment; UINT64_MAX where there is none. */
uint64_t mica_pack_align(uint64_t bytes);

typedef struct mica_store mica_store;

/* True for a directory that has a catalogue. */
bool mica_store_is_at(const char *path);
/* "STORE#NAME" apart: the directory is the first *directory_length bytes of `path`, *name points into it, NULL where there is none. False
 * when `path` is no store. Needs no memory, so that a failing allocation cannot read as "no". */
bool mica_store_split(const char *path, size_t *directory_length, const char **name);

/* Reading: the catalogue alone. */
mica_status mica_store_open(const char *path, mica_store **store, mica_error *error) MICA_CHECKED;
/* Writing: makes the directory where there is none (`create`), takes the lock (CONFLICT when another process has it), and removes what a
 * killed writer left. `pack_bytes`: where a new pack begins; 0: the default. */
mica_status mica_store_open_writer(const char *path, bool create, uint64_t pack_bytes, mica_store **store, mica_error *error) MICA_CHECKED;
void mica_store_close(mica_store *store); /* what was not committed is gone; NULL is fine */

mica_catalogue *mica_store_catalogue(mica_store *store);
const char *mica_store_path(const mica_store *store);
char *mica_store_pack_path(const mica_store *store, int64_t number); /* mica_free; NULL without memory */
const char *mica_store_pack_name(int64_t number, char buffer[40]);   /* "packs/000001.pack" */
/* Opens a pack for reading and checks its header. *missing (may be NULL) says that there is no such file. */
mica_status mica_store_open_pack(const mica_store *store, int64_t number, mica_file **file, bool *missing, mica_error *error) MICA_CHECKED;
/* What a header of 4 KiB must be for it to be this store's pack of that number. */
bool mica_store_header_is(const mica_store *store, int64_t number, const uint8_t header[MICA_PACK_HEADER_BYTES]);

/* ---- appending; inside a transaction of the catalogue */

/* The next `bytes` (aligned payloads) belong together: a new pack begins, with the next reservation, where the current one has no room.
 * What was reserved before must be written by then. */
void mica_store_begin_run(mica_store *store, uint64_t bytes);
/* The next reservation begins a pack: gc fills none that can be read already. */
void mica_store_begin_pack(mica_store *store);
/* The pack being filled; 0 before the first reservation. */
int64_t mica_store_pack(const mica_store *store);
/* The next `bytes`, a multiple of the alignment, of the pack being filled: *pack and *offset say where. */
mica_status mica_store_reserve(mica_store *store, uint64_t bytes, int64_t *pack, uint64_t *offset, mica_error *error) MICA_CHECKED;
/* Writes what was reserved; all of it aligned, `image` too, if it is to bypass the page cache. */
mica_status mica_store_write(mica_store *store, uint64_t offset, const void *image, uint64_t bytes, mica_error *error) MICA_CHECKED;
/* Takes back what was reserved of this pack from `offset` on, before anything named it. */
void mica_store_rewind(mica_store *store, uint64_t offset);
/* All that was reserved is named by rows now. */
void mica_store_keep(mica_store *store);
/* Syncs the packs, then commits: what was kept is durable. Begins the next transaction when `again`. */
mica_status mica_store_commit(mica_store *store, bool again, mica_error *error) MICA_CHECKED;
/* Removes the file of a pack that the catalogue has forgotten (committed). */
mica_status mica_store_unlink_pack(mica_store *store, int64_t number, mica_error *error) MICA_CHECKED;

#endif
