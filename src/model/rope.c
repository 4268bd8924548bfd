/* model/rope.c: see the header. In double throughout: an angle at position 100,000 has 17 bits before the point.
 * Judged by tests/model/test_rope.c (the fixtures' inv_freq) and test_forward.c. */
#include "model/rope.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

#define PI 3.14159265358979323846

static double mscale(double factor, double coefficient) {
    return factor > 1 ? 0.1 * coefficient * log(factor) + 1 : 1;
}

/* The index of the pair that turns `turns` times within the original context (a real number). */
static double pair_of_turns(const mica_config *config, double width, double turns) {
    return width * log((double)config->rope_original_context / (turns * 2 * PI)) / (2 * log(config->rope_theta));
}

/* Pairs that turn often keep their frequency, slow ones are stretched by the factor, between low and high a ramp. */
static void stretch_yarn(const mica_config *config, mica_rope *rope) {
    double width = 2 * (double)rope->pairs;
    double low = floor(pair_of_turns(config, width, config->rope_beta_fast));
    double high = ceil(pair_of_turns(config, width, config->rope_beta_slow));
    low = fmax(low, 0);
    high = fmin(high, width - 1);
    if (low == high)
        high += 0.001;
    for (uint64_t i = 0; i < rope->pairs; i++) {
        double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
        rope->frequencies[i] *= ramp / config->rope_factor + (1 - ramp);
    }
}

/* The same idea over wavelengths: long ones are stretched, short ones kept. */
static void stretch_llama3(const mica_config *config, mica_rope *rope) {
    double low = config->rope_low_freq_factor, high = config->rope_high_freq_factor;
    for (uint64_t i = 0; i < rope->pairs; i++) {
        double turns = (double)config->rope_original_context * rope->frequencies[i] / (2 * PI);
        double kept = turns >= high ? 1 : turns <= low ? 0 : (turns - low) / (high - low);
        rope->frequencies[i] *= (1 - kept) / config->rope_factor + kept;
    }
}

static mica_status stretch(const mica_config *config, mica_rope *rope, mica_error *error) {
    bool yarn = strcmp(config->rope_type, "yarn") == 0, llama3 = strcmp(config->rope_type, "llama3") == 0;
    if ((yarn || llama3) && config->rope_original_context == 0)
        return mica_fail(error, MICA_BAD_INPUT, "config.json: rope_scaling: original_max_position_embeddings: expected beside type %s, got "
                                                "absent", config->rope_type);
    if (yarn) {
        if (!(config->rope_beta_fast > 0) || !(config->rope_beta_slow > 0) || !(config->rope_theta > 1))
            return mica_fail(error, MICA_BAD_INPUT, "config.json: rope_scaling: expected positive beta_fast and beta_slow and a rope_theta "
                                                    "above 1 beside type yarn, got %g, %g and %g",
                             config->rope_beta_fast, config->rope_beta_slow, config->rope_theta);
        stretch_yarn(config, rope);
        rope->amplitude = config->rope_attention_factor > 0
                              ? config->rope_attention_factor
                              : mscale(config->rope_factor, config->rope_mscale) / mscale(config->rope_factor, config->rope_mscale_all_dim);
        if (config->architecture->attention == MICA_ATTENTION_LATENT)
            rope->softmax_scale *= (float)pow(mscale(config->rope_factor, config->rope_mscale_all_dim), 2);
    } else if (llama3) {
        stretch_llama3(config, rope);
    } else if (strcmp(config->rope_type, "linear") == 0) {
        for (uint64_t i = 0; i < rope->pairs; i++)
            rope->frequencies[i] /= config->rope_factor;
    } else if (config->rope_type[0]) {
        return mica_fail(error, MICA_BAD_INPUT,
                         "config.json: rope_scaling: expected type yarn, llama3, linear or default to run the model, got %s",
                         config->rope_type);
    }
    return MICA_OK;
}

mica_status mica_rope_init(const mica_config *config, mica_rope *rope, mica_error *error) {
    bool latent = config->architecture->attention == MICA_ATTENTION_LATENT;
    uint64_t rotated = latent ? config->qk_rope_head_dim : config->head_dim;
    uint64_t width = latent ? config->qk_nope_head_dim + config->qk_rope_head_dim : config->head_dim;
    *rope = (mica_rope){.pairs = rotated / 2, .amplitude = 1, .softmax_scale = (float)(1 / sqrt((double)width))};
    rope->frequencies = mica_calloc(rope->pairs, sizeof *rope->frequencies);
    if (!rope->frequencies)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the rotary embedding");
    for (uint64_t i = 0; i < rope->pairs; i++)
        rope->frequencies[i] = pow(config->rope_theta, -(double)i / (double)rope->pairs);
    mica_status status = stretch(config, rope, error);
    if (status != MICA_OK)
        mica_rope_release(rope);
    return status;
}

void mica_rope_release(mica_rope *rope) {
    mica_free(rope->frequencies);
    rope->frequencies = NULL;
}

void mica_rope_angles(const mica_rope *rope, uint64_t position, float *cosines, float *sines) {
    for (uint64_t i = 0; i < rope->pairs; i++) {
        double angle = (double)position * rope->frequencies[i];
        cosines[i] = (float)(rope->amplitude * cos(angle));
        sines[i] = (float)(rope->amplitude * sin(angle));
    }
}
