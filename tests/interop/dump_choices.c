/* tests/interop/dump_choices.c: dump_choices CHECKPOINT exact|fast own|given: which experts the engine chooses for a sequence computed in
 * one batch, by which scores, and the logits. In: the number of ids and the ids (8 bytes each, little-endian); with "given", for each layer
 * with experts, the ids [tokens][chosen] of those that are to be used instead (4 bytes each). Out: the number of layers with experts (8
 * bytes); of each the layer, the numbers of tokens, of experts and of those chosen (8 bytes each), the ids chosen [tokens][chosen] (4
 * bytes), what they were chosen by, score and correction [tokens][experts] (float32); then the logits [tokens][vocabulary] (float32). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/engine.h"
#include "model/given_choices.h"

#define TOKENS_MOST 512

typedef struct dumping {
    const mica_model *model;
    bool given;
} dumping;

static int fail(const char *what, int status) {
    fprintf(stderr, "dump_choices: %s\n", what);
    return status;
}

static void read_all(void *to, uint64_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes)
        exit(fail("the input ends too early", 2));
}

static void dump(void *context, uint64_t layer, uint64_t tokens, const float *scores, const uint32_t *ids, const float *weights) {
    const dumping *job = context;
    const mica_config *config = &job->model->config;
    const mica_weight *bias = job->model->layers[layer].router_bias;
    const uint64_t choices = tokens * config->num_experts_per_tok;
    float *correction = NULL;
    mica_error error;
    if (bias && mica_weight_load(job->model, bias, &correction, &error) != MICA_OK)
        exit(fail(error.message, 1));
    fwrite((const uint64_t[]){layer, tokens, config->n_routed_experts, config->num_experts_per_tok}, sizeof(uint64_t), 4, stdout);
    fwrite(ids, sizeof *ids, choices, stdout);
    for (uint64_t i = 0; i < tokens * config->n_routed_experts; i++) {
        const float by = scores[i] + (correction ? correction[i % config->n_routed_experts] : 0);
        fwrite(&by, sizeof by, 1, stdout);
    }
    mica_free(correction);
    if (!job->given)
        return;
    uint32_t *given = calloc(choices, sizeof *given);
    if (!given)
        exit(fail("out of memory", 1));
    read_all(given, choices * sizeof *given);
    for (uint64_t i = 0; i < choices; i++)
        if (given[i] >= config->n_routed_experts)
            exit(fail("no such expert", 2));
    use_given_choices(config, tokens, given, scores, ids, weights);
    free(given);
}

int main(int count, char **arguments) {
    int64_t ids[TOKENS_MOST];
    uint64_t tokens;
    dumping job;
    mica_engine *engine;
    mica_error error;
    if (count != 4)
        return fail("expected a checkpoint, exact or fast, own or given", 2);
    read_all(&tokens, sizeof tokens);
    if (tokens > TOKENS_MOST)
        return fail("too many tokens", 2);
    read_all(ids, tokens * sizeof *ids);
    job.given = strcmp(arguments[3], "given") == 0;
    const mica_engine_options options = {.precision = strcmp(arguments[2], "exact") == 0 ? MICA_PRECISION_EXACT : MICA_PRECISION_FAST};
    mica_model *model;
    if (mica_model_open(arguments[1], NULL, &model, &error) != MICA_OK || mica_engine_open(model, &options, &engine, &error) != MICA_OK)
        return fail(error.message, 3);
    job.model = model;
    const uint64_t values = tokens * model->config.vocab_size;
    float *logits = malloc(values * sizeof *logits);
    uint64_t layers = 0;
    for (uint64_t i = 0; i < model->config.num_hidden_layers; i++)
        layers += model->layers[i].moe;
    fwrite(&layers, sizeof layers, 1, stdout);
    mica_engine_observe(engine, &(mica_observer){.context = &job, .routing = dump});
    mica_status status = logits ? mica_engine_step(engine, ids, tokens, &error) : mica_fail(&error, MICA_NO_MEMORY, "out of memory");
    if (status == MICA_OK)
        status = mica_engine_logits(engine, 0, tokens, logits, &error);
    if (status == MICA_OK)
        fwrite(logits, sizeof *logits, values, stdout);
    free(logits);
    mica_engine_close(engine);
    mica_model_close(model);
    return status == MICA_OK ? 0 : fail(error.message, 1);
}
