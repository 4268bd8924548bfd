/* model/rope.h: the angles of the rotary embedding, from the configuration's own numbers.
 * Sources: YaRN (arXiv 2309.00071) as DeepSeek-V3's modelling code has it; llama 3.1's scaling as published with it. */
#ifndef MICA_MODEL_ROPE_H
#define MICA_MODEL_ROPE_H

#include "model/config.h"

typedef struct mica_rope {
    uint64_t pairs;      /* half the rotated width */
    double *frequencies; /* [pairs], owned: pair i turns by position * frequencies[i] */
    double amplitude;    /* of cosines and sines: YaRN's mscale over mscale_all_dim */
    float softmax_scale; /* of the scores: 1 / sqrt(width), for latent attention times YaRN's mscale_all_dim squared */
} mica_rope;

/* BAD_INPUT for a type whose angles are not computed (dynamic, longrope), or one that lacks what it needs. */
mica_status mica_rope_init(const mica_config *config, mica_rope *rope, mica_error *error) MICA_CHECKED;
void mica_rope_release(mica_rope *rope);

/* cosines and sines [pairs] at a position, the amplitude in them. */
void mica_rope_angles(const mica_rope *rope, uint64_t position, float *cosines, float *sines);

/* llama3's scaling as GGUF has it: what the frequency of a pair is divided by. Formula: transformers' llama3 rope. */
double mica_rope_llama3_divisor(const mica_config *config, uint64_t pair);
/* The other way: sets the scaling of `config` (whose rope_theta and head_dim are set) to one that gives these divisors ([head_dim / 2])
 * exactly as float32; false where none is found. */
bool mica_rope_find_llama3(mica_config *config, const float *divisors);

#endif
