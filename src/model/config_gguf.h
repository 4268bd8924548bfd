/* model/config_gguf.h: the configuration of a model in a GGUF file. Every refusal names the file, the key, expected and got. */
#ifndef MICA_MODEL_CONFIG_GGUF_H
#define MICA_MODEL_CONFIG_GGUF_H

#include "formats/gguf.h"
#include "model/config.h"

/* The rows of general.architecture; NULL when there are none: no model that is known. */
const mica_architecture *mica_architecture_of_gguf(const mica_gguf *gguf);

/* tie_word_embeddings and quantisation are the tensors' to say: left false and NONE. */
mica_status mica_config_from_gguf(const mica_gguf *gguf, mica_config *config, mica_error *error) MICA_CHECKED;

/* The other way round: config.json of such a configuration, of weights that are mostly of `dtype`. The text is the caller's (mica_free). */
mica_status mica_config_write(const mica_config *config, mica_dtype dtype, char **json, uint64_t *length, mica_error *error) MICA_CHECKED;

#endif
