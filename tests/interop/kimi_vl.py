#!/usr/bin/python3
"""tests/interop/kimi_vl.py PROGRAM: Kimi-VL in its published naming at small dimensions, written here in 7 shards: mica accounts for every tensor, and
export, import and the export of the import give back each of them bit for bit.

Two sizes: the published structure (27 layers, 64 experts, 27 vision blocks; with rotary frequencies 5,679 tensors), and one with 9,197 tensors (29
layers, 101 experts). 9,197 is also what the published model is said to have: it comes to that when each 14 x 14 patch of the patch embedding (3,456) and
each row of the position embedding (64) is counted by itself, as GMAT does it.

`kimi_vl.py --write DIR LAYERS EXPERTS BLOCKS` only writes a checkpoint."""
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

HIDDEN, HEADS, LATENT, NOPE, ROPE, VALUE = 32, 2, 16, 16, 16, 16
DENSE, EXPERT, VOCABULARY, VISION, VISION_MLP = 64, 32, 256, 16, 24


def names_and_shapes(layers, experts, blocks):
    language, mlp = "language_model.model.", lambda prefix, width: [(prefix + "gate_proj.weight", (width, HIDDEN)),
                                                                  (prefix + "up_proj.weight", (width, HIDDEN)),
                                                                  (prefix + "down_proj.weight", (HIDDEN, width))]
    yield language + "embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        prefix = f"{language}layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        yield prefix + "self_attn.q_proj.weight", (HEADS * (NOPE + ROPE), HIDDEN)
        yield prefix + "self_attn.kv_a_proj_with_mqa.weight", (LATENT + ROPE, HIDDEN)
        yield prefix + "self_attn.kv_a_layernorm.weight", (LATENT,)
        yield prefix + "self_attn.kv_b_proj.weight", (HEADS * (NOPE + VALUE), LATENT)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, HEADS * VALUE)
        yield prefix + "self_attn.rotary_emb.inv_freq", (ROPE // 2,)
        if layer == 0:
            yield from mlp(prefix + "mlp.", DENSE)
            continue
        yield prefix + "mlp.gate.weight", (experts, HIDDEN)
        yield prefix + "mlp.gate.e_score_correction_bias", (experts,)
        yield from mlp(prefix + "mlp.shared_experts.", 2 * EXPERT)
        for expert in range(experts):
            yield from mlp(f"{prefix}mlp.experts.{expert}.", EXPERT)
    yield language + "norm.weight", (HIDDEN,)
    yield "language_model.lm_head.weight", (VOCABULARY, HIDDEN)
    both = lambda name, shape: [(name + ".weight", shape), (name + ".bias", shape[:1])]
    yield from both("vision_tower.patch_embed.proj", (VISION, 3, 14, 14))
    yield "vision_tower.patch_embed.pos_emb.weight", (8, 8, VISION)
    for block in range(blocks):
        prefix = f"vision_tower.encoder.blocks.{block}."
        for name, shape in (("norm0", (VISION,)), ("norm1", (VISION,)), ("wqkv", (3 * VISION, VISION)), ("wo", (VISION, VISION)),
                            ("mlp.fc0", (VISION_MLP, VISION)), ("mlp.fc1", (VISION, VISION_MLP))):
            yield from both(prefix + name, shape)
    yield from both("vision_tower.encoder.final_layernorm", (VISION,))
    yield from both("multi_modal_projector.pre_norm", (VISION,))
    yield from both("multi_modal_projector.linear_1", (4 * VISION, 4 * VISION))
    yield from both("multi_modal_projector.linear_2", (HIDDEN, 4 * VISION))


def config(layers, experts, blocks):
    text = {"model_type": "deepseek_v3", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": DENSE, "moe_intermediate_size": EXPERT,
            "num_hidden_layers": layers, "num_nextn_predict_layers": 0, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
            "n_shared_experts": 2, "n_routed_experts": experts, "routed_scaling_factor": 2.446, "kv_lora_rank": LATENT, "q_lora_rank": None,
            "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "qk_nope_head_dim": NOPE, "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1,
            "num_experts_per_tok": 6, "moe_layer_freq": 1, "first_k_dense_replace": 1, "norm_topk_prob": True, "scoring_func": "sigmoid",
            "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 800000.0, "rope_scaling": None,
            "attention_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    vision = {"model_type": "moonvit", "patch_size": 14, "num_attention_heads": 2, "num_hidden_layers": blocks, "hidden_size": VISION,
              "intermediate_size": VISION_MLP, "merge_kernel_size": [2, 2], "init_pos_emb_height": 8, "init_pos_emb_width": 8}
    return {"architectures": ["KimiVLForConditionalGeneration"], "model_type": "kimi_vl", "torch_dtype": "bfloat16", "vocab_size": VOCABULARY,
            "text_config": text, "vision_config": vision}


def values(generator, dtype, count):
    """Finite, of both signs, near 2^-7."""
    bytes_ = bytearray(generator.randbytes(count * (4 if dtype == "F32" else 2)))
    width = 4 if dtype == "F32" else 2
    bytes_[width - 1::width] = bytes(0x3c | byte & 0x80 for byte in bytes_[width - 1::width])
    return bytes(bytes_)


def write(directory, layers, experts, blocks, shards=7):
    generator, tensors = random.Random(1), list(names_and_shapes(layers, experts, blocks))
    os.makedirs(directory)
    where, total, size = {}, 0, (len(tensors) + shards - 1) // shards
    for shard in range(shards):
        name, header, data = f"model-{shard + 1}-of-{shards}.safetensors", {"__metadata__": {"format": "pt"}}, []
        offset = 0
        for tensor, shape in tensors[shard * size:(shard + 1) * size]:
            count = 1
            for side in shape:
                count *= side
            dtype = "F32" if tensor.endswith(("inv_freq", "e_score_correction_bias")) else "BF16"
            data.append(values(generator, dtype, count))
            header[tensor] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data[-1])]}
            offset += len(data[-1])
            where[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(directory, name), "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + b"".join(data))
        total += offset
    for name, content in (("model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where}),
                          ("config.json", config(layers, experts, blocks)), ("generation_config.json", {"max_length": 131072}),
                          ("preprocessor_config.json", {"patch_size": 14})):
        with open(os.path.join(directory, name), "w") as file:
            json.dump(content, file, indent=1)


def read(directory):
    """{name: (dtype, shape, SHA-256)}"""
    tensors = {}
    for path in sorted(os.listdir(directory)):
        if not path.endswith(".safetensors"):
            continue
        with open(os.path.join(directory, path), "rb") as file:
            data = file.read()
        length = struct.unpack("<Q", data[:8])[0]
        for name, entry in json.loads(data[8:8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                tensors[name] = (entry["dtype"], entry["shape"], hashlib.sha256(data[begin:end]).digest())
    return tensors


def check(holds, what):
    if not holds:
        print(f"failed: {what}")
        sys.exit(1)


def mica(*arguments):
    done = subprocess.run([sys.argv[1], *arguments], capture_output=True, text=True)
    check(done.returncode == 0, f"mica {' '.join(arguments)}: {done.returncode}: {done.stderr}")
    return done.stdout


def try_size(scratch, layers, experts, blocks, count):
    model, out, store, again = (os.path.join(scratch, f"{count}-{part}") for part in ("model", "out", "store", "again"))
    write(model, layers, experts, blocks)
    truth = read(model)
    check(len(truth) == count, f"expected {count} tensors, got {len(truth)}")
    text = mica("inspect", "--strict", model)
    check(f"{count}: " in text and " 0 unknown" in text, f"inspect: {text}")
    mica("export", model, "--format", "safetensors", "-o", out, "--shard-size", "500kB")
    check(read(out) == truth, f"{count} tensors: the export has every one, bit for bit")
    mica("import", model, "-o", store, "--as", "kimi-vl")
    mica("export", store + "#kimi-vl", "--format", "safetensors", "-o", again, "--shard-size", "500kB")
    check(subprocess.run(["diff", "-r", out, again]).returncode == 0, f"{count} tensors: by way of a store")
    mica("diff", model, store + "#kimi-vl")
    for name in ("config.json", "generation_config.json", "preprocessor_config.json"):
        check(open(os.path.join(model, name)).read() == open(os.path.join(again, name)).read(), name)


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(sys.argv[2], *map(int, sys.argv[3:6]))
        sys.exit(0)
    sys.argv[1] = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        try_size(place, 27, 64, 27, 5679)
        try_size(place, 29, 101, 27, 9197)
    print("passed: Kimi-VL's tensors, 5,679 and 9,197, there and back")
