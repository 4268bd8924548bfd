/* model/gguf_groups.h: how a GGUF says that experts of one tensor have several types, which llama.cpp cannot load: instead of NAME there
 * are NAME.g0, NAME.g1, …, [experts of the group][rows][columns] in ascending order, and a key with each expert's group
 * (docs/formats.md). */
#ifndef MICA_MODEL_GGUF_GROUPS_H
#define MICA_MODEL_GGUF_GROUPS_H

#define MICA_GGUF_GROUPS_KEY "mica.expert_groups." /* and the tensor's name; u8 [experts] */
#define MICA_GGUF_GROUP_SUFFIX ".g"                /* and the group's number */

#endif
