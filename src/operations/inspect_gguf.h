/* operations/inspect_gguf.h: the container and the keys of a GGUF file, as inspect shows them. Private to inspect. */
#ifndef MICA_OPERATIONS_INSPECT_GGUF_H
#define MICA_OPERATIONS_INSPECT_GGUF_H

#include "base/json.h"
#include "formats/gguf.h"

void mica_inspect_gguf_text(mica_text *text, const mica_gguf *gguf);
void mica_inspect_gguf_json(mica_json_writer *writer, const mica_gguf *gguf); /* the member "gguf" */

#endif
