/* operations/export_rules.h: an export's configuration file: which type a tensor gets, by rules, of which the first that matches wins; the
 * keys of GMAT's export_config.json are understood as well. Grammar: docs/export.md. Judged by tests/operations/test_export_rules.c. */
#ifndef MICA_OPERATIONS_EXPORT_RULES_H
#define MICA_OPERATIONS_EXPORT_RULES_H

#include "base/json.h"
#include "operations/export_gguf.h"

typedef struct mica_export_rule mica_export_rule;

typedef struct mica_export_rules {
    json_t *tree; /* the file; owned; NULL: no file */
    char *name;   /* for messages; owned */
    const char *type, *effort; /* in `tree`; NULL: not said */
    mica_export_rule *rules;   /* owned */
    uint64_t rule_count;
    char **notes;              /* one line each, for the report: what an old key means here; owned */
    uint64_t note_count;
    bool trellis;              /* scale_optimization "trellis" */
    char within[72];           /* "rules[3]: ", while that one is read: for messages */
} mica_export_rules;

/* `path` NULL: no rules. BAD_INPUT names the key that is unknown or wrong. */
mica_status mica_export_rules_load(const char *path, mica_export_rules *rules, mica_error *error) MICA_CHECKED;
void mica_export_rules_release(mica_export_rules *rules);

/* The type the first matching rule gives `tensor`; where none matches, *type and *reason are untouched. `otherwise` is that of experts no
 * rule matches: every expert's goes to `types` [matrices]; where that is NULL, experts of different types are BAD_INPUT, since a GGUF
 * tensor cannot have them. */
mica_status mica_export_rules_choose(mica_export_rules *rules, const mica_export_tensor *tensor, mica_dtype otherwise, mica_dtype *types,
                                     mica_dtype *type, const char **reason, mica_error *error) MICA_CHECKED;

/* One line more for the report. */
mica_status mica_export_rules_note(mica_export_rules *rules, mica_error *error, const char *text) MICA_CHECKED;

/* After all tensors: BAD_INPUT naming the first rule that matched nothing. */
mica_status mica_export_rules_check_used(const mica_export_rules *rules, mica_error *error) MICA_CHECKED;

#endif
