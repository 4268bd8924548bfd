#!/usr/bin/python3
"""tests/interop/export_gguf.py PROGRAM: what `mica export --format gguf` writes, judged by llama.cpp (npm node-llama-cpp) and gguf (PyPI): it loads, its
logits are the float64 truths, its types and sizes are llama-quantize's, its tokens are tiktoken's. Exit status 77: skipped."""
import json
import os
import subprocess
import sys
import tempfile

import peers
from peers import ROOT, check

with peers.needed():
    import gguf
    import numpy as np
import llama
import truths

library = llama.needed_library()

MICA = os.path.abspath(sys.argv[1])
TINY = os.path.join(ROOT, "models", "tiny-k2")
FIXTURES = os.path.join(ROOT, "..", "shared", "fixtures", "public")
scratch = tempfile.TemporaryDirectory()


def export(checkpoint, name, *options):
    path = os.path.join(scratch.name, name)
    done = subprocess.run([MICA, "export", checkpoint, "--format", "gguf", "-o", path, "--force", *options], capture_output=True, text=True)
    check(done.returncode == 0, f"export {checkpoint} {' '.join(options)}: {done.stderr}")
    return path


def compare_logits(path, directory, sequences, what):
    model = llama.Model(library, path)
    for name, (ids, truth) in sequences.items():
        worst = np.abs(model.logits(ids) - truth).max()
        print(f"{what} {name}: logits within {worst:.2e}", flush=True)
        check(worst < 1e-4, f"{what} {name}: logits differ by {worst}")
    model.close()


def fixture_sequences(directory):
    """Those where llama.cpp's graph computes the same thing: one epsilon per model (the trap's own truth), YaRN's ramp from 32 to 1."""
    golden = truths.load(directory)
    trap = golden.get("eps_trap") or {}
    ids = golden["sequences"]["a"]["ids"]
    if trap.get("logits_a_with_one_eps_everywhere"):
        return {"a (one epsilon)": (ids, truths.raw(directory, trap["logits_a_with_one_eps_everywhere"]))}
    return {name: (golden["sequences"][name]["ids"], truths.raw(directory, golden["sequences"][name]["logits"])) for name in ("a", "b")}


def check_truths():
    golden = truths.load(os.path.join(TINY, "golden"))
    sequences = {name: (record["ids"], truths.raw(os.path.join(TINY, "golden"), record["logits"]))
                 for name, record in golden["sequences"].items() if name in ("fact", "kjv")}
    compare_logits(export(TINY, "tiny-f32.gguf", "--type", "f32"), TINY, sequences, "tiny-k2 f32")
    for kind in ("v3-groups", "v3-groups-ue8m0", "kimi-vl", "k2-thinking", "k25", "qwen3-dense", "llama-dense"):
        directory = os.path.join(FIXTURES, kind)
        if not os.path.isdir(directory):
            print(f"skipped: {kind} (no ../shared)")
            continue
        compare_logits(export(directory, f"{kind}-f32.gguf", "--type", "f32"), directory, fixture_sequences(directory), f"{kind} f32")


def check_values(kind):
    """Every tensor of the F32 file against the fixture's decoded weights, by name."""
    directory = os.path.join(FIXTURES, kind)
    if not os.path.isdir(directory):
        return
    golden = truths.load(directory)
    config = json.load(open(os.path.join(directory, "config.json")))
    config = config.get("text_config", config)
    tensors = {t.name: np.asarray(t.data) for t in gguf.GGUFReader(os.path.join(scratch.name, f"{kind}-f32.gguf")).tensors}
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_a_proj": "attn_q_a",
             "self_attn.q_b_proj": "attn_q_b", "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.o_proj": "attn_output",
             "self_attn.v_proj": "attn_v", "mlp.gate": "ffn_gate_inp", "mlp.down_proj": "ffn_down",
             "mlp.shared_experts.up_proj": "ffn_up_shexp"}
    compared = 0
    for name, record in golden["decoded"].items():
        values = truths.raw(directory, record)
        parts = name[len(golden["prefix"]):].split(".")
        if parts[:2] != ["model", "layers"]:
            continue
        layer, rest = parts[2], ".".join(parts[3:-1])
        if rest in names and f"blk.{layer}.{names[rest]}.weight" in tensors:
            ours = tensors[f"blk.{layer}.{names[rest]}.weight"]
        elif rest.startswith("mlp.experts.") and parts[-1] == "weight":
            ours = tensors[f"blk.{layer}.ffn_{rest.split('.')[3].split('_')[0]}_exps.weight"][int(rest.split('.')[2])]
        elif rest == "self_attn.kv_b_proj":
            heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
            halves = values.reshape(heads, -1, values.shape[1])
            check(np.array_equal(tensors[f"blk.{layer}.attn_k_b.weight"], halves[:, :nope].transpose(0, 2, 1)), f"{kind}: {name}: attn_k_b")
            check(np.array_equal(tensors[f"blk.{layer}.attn_v_b.weight"], halves[:, nope:]), f"{kind}: {name}: attn_v_b")
            compared += 1
            continue
        else:
            continue
        compared += 1
        check(np.array_equal(ours, values.astype(np.float32)), f"{kind}: {name}: values differ")
    print(f"{kind}: {compared} weights compared")
    check(compared > 3, f"{kind}: only {compared} weights compared")


MIXTURES = {"q8_0": 7, "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q2_k_s": 21, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
            "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "mxfp4_moe": 38, "bf16": 32, "f16": 1}


def types_of(path):
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def check_mixtures(checkpoint, kind):
    """The same type for every tensor as llama-quantize gives on the F32 file."""
    source = os.path.join(scratch.name, f"{kind}-f32.gguf")
    if not os.path.exists(source):
        return
    for mixture, number in MIXTURES.items():
        if mixture == "q2_k_s":  # llama-quantize wants an importance matrix for it
            continue
        theirs = os.path.join(scratch.name, "theirs.gguf")
        if llama.quantise(library, source, theirs, number):
            check(False, f"{kind} {mixture}: llama-quantize fails: {''.join(llama.messages)[-300:]}")
            continue
        ours = export(checkpoint, "ours.gguf", "--type", mixture)
        expected, got = types_of(theirs), types_of(ours)
        differences = {name: (got.get(name), expected[name]) for name in expected if got.get(name) != expected[name]}
        check(not differences, f"{kind} {mixture}: (ours, llama-quantize's): {dict(list(differences.items())[:6])}")
    print(f"{kind}: types of {len(MIXTURES) - 1} mixtures compared")


def check_loading():
    for kind in ("f32", "q8_0", "q4_k_m", "q2_k", "iq4_xs", "mxfp4_moe", "source"):
        for split in (False, True):
            path = export(TINY, f"tiny-{kind}.gguf", "--type", kind, *(["--split-size", "3MB"] if split else []))
            if split:
                files = sorted(f for f in os.listdir(scratch.name) if f.startswith(f"tiny-{kind}-0") and f.endswith(".gguf"))
                check(len(files) > 1, f"{kind}: expected several files, got {files}")
                path = os.path.join(scratch.name, files[0])
            try:
                model = llama.Model(library, path)
            except ValueError as problem:
                check(False, f"{kind} split {split}: {problem}")
                continue
            ids = [3840] + model.tokenize(b"The capital of France is")
            text = model.text(model.greedy(ids, 3))
            print(f"tiny-k2 {kind}{' split' if split else ''}: {text!r}")
            if kind in ("f32", "q8_0", "q4_k_m", "source"):
                check(text.startswith("[BOS]The capital of France is Paris"), f"{kind}: {text!r}")
            model.close()


def check_tokens():
    golden = truths.load(os.path.join(TINY, "golden"))
    model = llama.Model(library, os.path.join(scratch.name, "tiny-f32.gguf"), vocabulary_only=True)
    for name, record in golden["sequences"].items():
        if record.get("text"):
            check(model.tokenize(record["text"].encode()) == record["ids"][1:], f"{name}: tokens differ from tiktoken's")
    model.close()


def halves(values, heads):
    """Queries and keys as llama.cpp's clip computes with them: of each four rows of a head the first two, then the others."""
    groups = values.reshape(heads, -1, 2, 2, *values.shape[1:])
    return np.moveaxis(groups, 2, 1).reshape(values.shape)


def check_vision(kind):
    """The vision file's values against the fixture's decoded tensors."""
    directory = os.path.join(FIXTURES, kind)
    if not os.path.isdir(directory):
        return
    path = os.path.join(scratch.name, "vision.gguf")
    export(directory, "language.gguf", "--mmproj", path)
    reader = gguf.GGUFReader(path)
    fused = kind == "k25"
    vision = json.load(open(os.path.join(directory, "config.json")))["vision_config"]
    facts = {"general.architecture": "clip", "general.type": "mmproj", "clip.has_vision_encoder": True,
             "clip.projector_type": "kimik25" if fused else "kimivl", "clip.use_gelu": True,
             "clip.vision.patch_size": vision["patch_size"], "clip.vision.projector.scale_factor": 2}
    if fused:
        facts.update({"clip.vision.embedding_length": vision["vt_hidden_size"], "clip.vision.feed_forward_length": vision["vt_intermediate_size"],
                      "clip.vision.attention.head_count": vision["vt_num_attention_heads"], "clip.vision.block_count": vision["vt_num_hidden_layers"],
                      "clip.vision.image_size": vision["init_pos_emb_height"] * vision["patch_size"], "vision.pos_emb_height": vision["init_pos_emb_height"],
                      "vision.pos_emb_width": vision["init_pos_emb_width"], "vision.pos_emb_time": vision["init_pos_emb_time"],
                      "clip.vision.image_min_pixels": 8 * vision["patch_size"] ** 2, "clip.vision.image_max_pixels": 16384 * vision["patch_size"] ** 2})
    for key, value in facts.items():
        check(key in reader.fields and reader.fields[key].contents() == value, f"{kind} vision: {key}: expected {value}")
    tensors = {t.name: gguf.quants.dequantize(np.asarray(t.data), t.tensor_type) if t.tensor_type.name == "BF16" else np.asarray(t.data)
               for t in reader.tensors}
    values = {}
    for file in sorted(f for f in os.listdir(directory) if f.endswith(".safetensors")):
        blob = open(os.path.join(directory, file), "rb").read()
        length = int.from_bytes(blob[:8], "little")
        for name, record in json.loads(blob[8:8 + length]).items():
            if name.startswith(("vision_tower.", "multi_modal_projector.", "mm_projector.")):
                begin, end = record["data_offsets"]
                bits = np.frombuffer(blob[8 + length + begin:8 + length + end], "<u2").astype(np.uint32) << 16
                values[name] = bits.view(np.float32).reshape(record["shape"])
    tower, projector = "vision_tower.", "mm_projector." if fused else "multi_modal_projector."
    positions = values[tower + "patch_embed.pos_emb.weight"]
    expected = {"v.patch_embd.weight": values[tower + "patch_embed.proj.weight"], "v.patch_embd.bias": values[tower + "patch_embed.proj.bias"],
                "v.position_embd.weight": positions if fused else positions.reshape(-1, 32)}
    check(list(reader.get_tensor([t.name for t in reader.tensors].index("v.position_embd.weight")).shape) ==
          (list(positions.shape[::-1]) if fused else [positions.shape[2], positions.shape[0] * positions.shape[1]]), f"{kind} vision: positions' shape")
    for part in ("weight", "bias"):
        expected[f"v.post_ln.{part}"] = values[f"{tower}encoder.final_layernorm.{part}"]
        expected[f"mm.input_norm.{part}"] = values[f"{projector}pre_norm.{part}"]
        for i, name in enumerate(("proj.0", "proj.2") if fused else ("linear_1", "linear_2"), 1):
            expected[f"mm.{i}.{part}"] = values[f"{projector}{name}.{part}"]
        for block in range(1 if fused else 2):
            parts = {"ln1": "norm0", "ln2": "norm1", "attn_out": "wo", "ffn_up": "mlp.fc0", "ffn_down": "mlp.fc1"}
            for ours, theirs in parts.items():
                expected[f"v.blk.{block}.{ours}.{part}"] = values[f"{tower}encoder.blocks.{block}.{theirs}.{part}"]
            thirds = np.split(values[f"{tower}encoder.blocks.{block}.wqkv.{part}"], 3)
            heads = vision["vt_num_attention_heads" if fused else "num_attention_heads"]
            thirds = [halves(thirds[0], heads), halves(thirds[1], heads), thirds[2]]
            if fused:
                expected[f"v.blk.{block}.attn_qkv.{part}"] = np.concatenate(thirds)
            for i, ours in enumerate(() if fused else ("attn_q", "attn_k", "attn_v")):
                expected[f"v.blk.{block}.{ours}.{part}"] = thirds[i]
    check(set(tensors) == set(expected), f"{kind} vision: names: {sorted(set(tensors) ^ set(expected))}")
    for name in set(expected) & set(tensors):
        check(np.array_equal(tensors[name].reshape(expected[name].shape), expected[name]), f"{kind} vision: {name}: values differ")
    print(f"{kind}: vision: {len(expected)} tensors compared")


def check_v4():
    """DeepSeek-V4: llama.cpp loads the language model's file; its MXFP4 experts decode to the fixture's values."""
    directory = os.path.join(FIXTURES, "v4-flash")
    if not os.path.isdir(directory):
        return
    path = export(directory, "v4.gguf")
    try:
        llama.Model(library, path).close()
        print("v4-flash: loaded")
    except ValueError as problem:
        check(False, f"v4-flash: {problem}")
    golden = truths.load(directory)
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    compared = 0
    for name, record in golden["decoded"].items():
        parts = name.split(".")
        if ".experts." not in name or parts[-1] != "weight":
            continue
        projection = {"w1": "gate", "w3": "up", "w2": "down"}[parts[5]]
        tensor = tensors[f"blk.{parts[1]}.ffn_{projection}_exps.weight"]
        check(tensor.tensor_type.name == "MXFP4", f"v4-flash: {name}: {tensor.tensor_type.name}")
        ours = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)[int(parts[4])]
        truth = truths.raw(directory, record)
        good = np.isfinite(truth) & np.isfinite(ours)
        check(np.array_equal(ours[good], truth[good].astype(np.float32)), f"v4-flash: {name}: values differ")
        compared += 1
    print(f"v4-flash: {compared} experts compared")


check_truths()
check_vision("kimi-vl")
check_vision("k25")
check_v4()
for kind in ("v3-groups", "kimi-vl", "k2-thinking", "k25"):
    check_values(kind)
check_tokens()
check_loading()
check_mixtures(TINY, "tiny")
for kind in ("kimi-vl", "qwen3-dense", "llama-dense"):
    check_mixtures(os.path.join(FIXTURES, kind), kind)
peers.finish()
