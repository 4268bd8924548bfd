#!/usr/bin/python3
"""tests/interop/store.py PROGRAM: a store judged by the safetensors library, which reads both what went in and what comes out.

Kimi-VL at small dimensions, with all its names (vision tower, projector, language model) in 7 shards, made here without mica; models/tiny-k2; the
fixtures where they are. Every tensor must come back bit for bit, every file as it was, and two models that share tensors share their bytes.
Exit status 77: skipped."""
import filecmp
import glob
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

import peers
from peers import ROOT

with peers.needed():
    import safetensors

PROGRAM = os.path.abspath(sys.argv[1])
FIXTURES = os.path.join(ROOT, "..", "shared", "fixtures", "public")


def run(*arguments):
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"mica {' '.join(arguments)}: {done.returncode}: {done.stderr}"
    return done.stdout


def check(holds, what):
    if not holds:
        print(f"failed: {what}")
        sys.exit(1)


# --- Kimi-VL, small ---

VISION, HIDDEN, HEADS, LAYERS, EXPERTS = 8, 16, 2, 27, 64


def kimi_vl_shapes(planes):
    """name -> shape: 27 language layers (the first dense), 64 experts, 27 blocks of MoonViT. `planes`: the two tensors of more than two dimensions cut
    into matrices, as GMAT stores them: the 9,197 "tensors" it counts in this model, of which the checkpoint has 5,679."""
    shapes = {"language_model.model.embed_tokens.weight": [64, HIDDEN], "language_model.model.norm.weight": [HIDDEN],
              "language_model.lm_head.weight": [64, HIDDEN]}
    for layer in range(LAYERS):
        prefix = f"language_model.model.layers.{layer}."
        shapes |= {prefix + "input_layernorm.weight": [HIDDEN], prefix + "post_attention_layernorm.weight": [HIDDEN],
                   prefix + "self_attn.q_proj.weight": [HEADS * 12, HIDDEN], prefix + "self_attn.kv_a_proj_with_mqa.weight": [12, HIDDEN],
                   prefix + "self_attn.kv_a_layernorm.weight": [8], prefix + "self_attn.kv_b_proj.weight": [HEADS * 16, 8],
                   prefix + "self_attn.o_proj.weight": [HIDDEN, HEADS * 8], prefix + "self_attn.rotary_emb.inv_freq": [2]}
        groups = [("mlp.", 24)] if layer == 0 else [("mlp.shared_experts.", 8)] + [(f"mlp.experts.{e}.", 4) for e in range(EXPERTS)]
        for group, width in groups:
            shapes |= {prefix + group + "gate_proj.weight": [width, HIDDEN], prefix + group + "up_proj.weight": [width, HIDDEN],
                       prefix + group + "down_proj.weight": [HIDDEN, width]}
        if layer:
            shapes |= {prefix + "mlp.gate.weight": [EXPERTS, HIDDEN], prefix + "mlp.gate.e_score_correction_bias": [EXPERTS]}
    tower = "vision_tower."
    shapes |= {tower + "patch_embed.proj.bias": [1152], tower + "encoder.final_layernorm.weight": [VISION],
               tower + "encoder.final_layernorm.bias": [VISION]}
    conv, positions = tower + "patch_embed.proj.weight", tower + "patch_embed.pos_emb.weight"
    if planes:
        shapes |= {f"{conv}_{i}": [2, 2] for i in range(1152 * 3)} | {f"{positions}_{i}": [64, VISION] for i in range(64)}
    else:
        shapes |= {conv: [1152, 3, 2, 2], positions: [64, 64, VISION]}
    for block in range(27):
        prefix = f"{tower}encoder.blocks.{block}."
        for part, rows, columns in (("wqkv", 3 * VISION, VISION), ("wo", VISION, VISION), ("mlp.fc0", 32, VISION), ("mlp.fc1", VISION, 32)):
            shapes |= {f"{prefix}{part}.weight": [rows, columns], f"{prefix}{part}.bias": [rows]}
        for norm in ("norm0", "norm1"):
            shapes |= {f"{prefix}{norm}.weight": [VISION], f"{prefix}{norm}.bias": [VISION]}
    projector = "multi_modal_projector."
    for part, rows, columns in (("linear_1", 32, 32), ("linear_2", HIDDEN, 32)):
        shapes |= {f"{projector}{part}.weight": [rows, columns], f"{projector}{part}.bias": [rows]}
    return shapes | {projector + "pre_norm.weight": [VISION], projector + "pre_norm.bias": [VISION]}


def write_checkpoint(directory, shapes, shard_count):
    """bf16 (the routers' bias and inv_freq F32), names in the order given, values random but never NaN."""
    os.mkdir(directory)
    names, weight_map = list(shapes), {}
    for shard in range(shard_count):
        name = f"model-{shard + 1}-of-{shard_count}.safetensors"
        header, data = {"__metadata__": {"format": "pt"}}, bytearray()
        mine = names[len(names) * shard // shard_count:len(names) * (shard + 1) // shard_count]
        for wide in (True, False):  # F32 first, so that it is aligned
            for tensor in mine:
                is_wide = tensor.endswith(("inv_freq", "e_score_correction_bias"))
                if is_wide != wide:
                    continue
                count = 1
                for dimension in shapes[tensor]:
                    count *= dimension
                generator = random.Random(tensor)
                values = [generator.uniform(-1, 1) for _ in range(count)]
                raw = struct.pack(f"<{count}f", *values)
                if not is_wide:
                    raw = b"".join(raw[4 * i + 2:4 * i + 4] for i in range(count))
                header[tensor] = {"dtype": "F32" if is_wide else "BF16", "shape": shapes[tensor], "data_offsets": [len(data), len(data) + len(raw)]}
                data += raw
                weight_map[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(directory, name), "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + data)
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {}, "weight_map": weight_map}, file)
    config = {"architectures": ["KimiVLForConditionalGeneration"], "model_type": "kimi_vl", "torch_dtype": "bfloat16", "vocab_size": 64,
              "text_config": {"model_type": "deepseek_v3", "vocab_size": 64, "hidden_size": HIDDEN, "intermediate_size": 24, "moe_intermediate_size": 4,
                              "num_hidden_layers": LAYERS, "num_nextn_predict_layers": 0, "num_attention_heads": HEADS,
                              "num_key_value_heads": HEADS, "n_shared_experts": 2, "n_routed_experts": EXPERTS, "routed_scaling_factor": 2.446,
                              "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 8,
                              "topk_method": "noaux_tc", "n_group": 1, "topk_group": 1, "num_experts_per_tok": 6, "moe_layer_freq": 1,
                              "first_k_dense_replace": 1, "norm_topk_prob": True, "scoring_func": "sigmoid", "hidden_act": "silu",
                              "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 800000.0, "rope_scaling": None,
                              "attention_bias": False, "tie_word_embeddings": False},
              "vision_config": {"hidden_size": VISION, "num_hidden_layers": 27}}
    for name, content in (("config.json", config), ("generation_config.json", {"max_length": 7}), ("tokenizer_config.json", {"bos_token": "é"})):
        with open(os.path.join(directory, name), "w") as file:
            json.dump(content, file, indent=1)
    with open(os.path.join(directory, "chat_template.jinja"), "w") as file:
        file.write("{% for message in messages %}\r\n{{ message }}\n{% endfor %}")


# --- comparing, by the library ---

def read_all(directory):
    """name -> (dtype, shape, bytes): the library's own parser of a whole file's bytes."""
    tensors = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        with open(path, "rb") as file:
            for name, tensor in safetensors.deserialize(file.read()):
                check(name not in tensors, f"{path}: {name} twice")
                tensors[name] = (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
    return tensors


def compare(left, right):
    ours, theirs = read_all(left), read_all(right)
    check(list(sorted(ours)) == list(sorted(theirs)), f"{left} and {right} have other names")
    for name, tensor in ours.items():
        check(tensor == theirs[name], f"{right}: {name} differs")
    for name in os.listdir(left):
        if not name.endswith((".safetensors", ".index.json")) and os.path.isfile(os.path.join(left, name)):
            check(filecmp.cmp(os.path.join(left, name), os.path.join(right, name), shallow=False), f"{right}: {name} differs")
    return len(ours)


def packs(store):
    return sum(os.path.getsize(path) for path in glob.glob(os.path.join(store, "packs", "*.pack")))


def main():
    with tempfile.TemporaryDirectory() as scratch:
        store = os.path.join(scratch, "store")
        models = {"tiny-k2": os.path.join(ROOT, "models", "tiny-k2")}
        for name, planes, count in (("kimi-vl", False, 5679), ("kimi-vl-planes", True, 9197)):
            shapes = kimi_vl_shapes(planes)
            check(len(shapes) == count, f"{name}: {len(shapes)} names")
            models[name] = os.path.join(scratch, name)
            write_checkpoint(models[name], shapes, 7)
        for path in sorted(glob.glob(os.path.join(FIXTURES, "*", "config.json"))):
            models["fixture-" + os.path.basename(os.path.dirname(path))] = os.path.dirname(path)
        if len(models) == 3:
            print("no fixtures: without them")
        total = 0
        for name, path in models.items():
            run("import", path, "-o", store, "--as", name)
        for name, path in models.items():
            target = os.path.join(scratch, "out-" + name)
            run("export", f"{store}#{name}", "--format", "safetensors", "-o", target, "--shard-size", "100kB" if "kimi-vl" in name else "5GB")
            total += compare(path, target)
        inspected = json.loads(run("inspect", f"{store}#kimi-vl", "--json"))
        check(inspected["tensors"] == {"total": 5679, "used": 5317, "ignored": 362, "unknown": 0}, f"kimi-vl: {inspected['tensors']}")
        before = packs(store)
        run("import", models["kimi-vl"], "-o", store, "--as", "again")
        check(packs(store) == before, "the same model took room twice")
        print(f"{len(models)} models, {total} tensors back from the store, bit for bit by safetensors {safetensors.__version__}")


main()
