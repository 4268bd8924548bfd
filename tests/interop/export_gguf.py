#!/usr/bin/python3
"""tests/interop/export_gguf.py PROGRAM: what `mica export --format gguf` writes, judged by llama.cpp (npm node-llama-cpp) and gguf (PyPI): it loads, its
logits are the float64 truths, its types and sizes are llama-quantize's, its tokens are tiktoken's. Exit status 77: skipped."""
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
PEERS = os.path.join(ROOT, "build", "peers")
PYTHON = os.path.join(PEERS, "venv", "bin", "python")
if os.path.exists(PYTHON) and os.path.realpath(sys.prefix) != os.path.realpath(os.path.join(PEERS, "venv")):
    os.execv(PYTHON, [PYTHON, *sys.argv])

try:
    import gguf
    import numpy as np
except ImportError as missing:
    print(f"skipped: {missing} (scripts/setup-peers)")
    sys.exit(77)
sys.path.insert(0, os.path.dirname(__file__))
import llama  # noqa: E402

library = llama.open_library(ROOT)
if library is None:
    print("skipped: no llama.cpp (scripts/setup-peers)")
    sys.exit(77)

MICA = os.path.abspath(sys.argv[1])
TINY = os.path.join(ROOT, "models", "tiny-k2")
FIXTURES = os.path.join(ROOT, "..", "shared", "fixtures", "public")
scratch = tempfile.TemporaryDirectory()
failures = checks = 0


def check(holds, what):
    global failures, checks
    checks += 1
    if not holds:
        failures += 1
        print(f"failed: {what}", flush=True)


def export(checkpoint, name, *options):
    path = os.path.join(scratch.name, name)
    done = subprocess.run([MICA, "export", checkpoint, "--format", "gguf", "-o", path, "--force", *options], capture_output=True, text=True)
    check(done.returncode == 0, f"export {checkpoint} {' '.join(options)}: {done.stderr}")
    return path


def raw(directory, record):
    kinds = {"f32": "<f4", "f64": "<f8", "i32": "<i4", "i64": "<i8"}
    return np.fromfile(os.path.join(directory, record["file"]), kinds[record["dtype"]]).reshape(record["shape"])


def compare_logits(path, directory, sequences, what):
    model = llama.Model(library, path)
    for name, (ids, truth) in sequences.items():
        worst = np.abs(model.logits(ids) - truth).max()
        print(f"{what} {name}: logits within {worst:.2e}", flush=True)
        check(worst < 1e-4, f"{what} {name}: logits differ by {worst}")
    model.close()


def fixture_sequences(directory):
    """Those where llama.cpp's graph computes the same thing: one epsilon per model (the trap's own truth), YaRN's ramp from 32 to 1."""
    golden = json.load(open(os.path.join(directory, "golden.json")))
    trap = golden.get("eps_trap") or {}
    ids = golden["sequences"]["a"]["ids"]
    if trap.get("logits_a_with_one_eps_everywhere"):
        return {"a (one epsilon)": (ids, raw(directory, trap["logits_a_with_one_eps_everywhere"]))}
    return {name: (golden["sequences"][name]["ids"], raw(directory, golden["sequences"][name]["logits"])) for name in ("a", "b")}


def check_truths():
    golden = json.load(open(os.path.join(TINY, "golden", "golden.json")))
    sequences = {name: (record["ids"], raw(os.path.join(TINY, "golden"), record["logits"]))
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
    golden = json.load(open(os.path.join(directory, "golden.json")))
    config = json.load(open(os.path.join(directory, "config.json")))
    config = config.get("text_config", config)
    tensors = {t.name: np.asarray(t.data) for t in gguf.GGUFReader(os.path.join(scratch.name, f"{kind}-f32.gguf")).tensors}
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_a_proj": "attn_q_a",
             "self_attn.q_b_proj": "attn_q_b", "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.o_proj": "attn_output",
             "self_attn.v_proj": "attn_v", "mlp.gate": "ffn_gate_inp", "mlp.down_proj": "ffn_down",
             "mlp.shared_experts.up_proj": "ffn_up_shexp"}
    compared = 0
    for name, record in golden["decoded"].items():
        values = raw(directory, record)
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
    golden = json.load(open(os.path.join(TINY, "golden", "golden.json")))
    model = llama.Model(library, os.path.join(scratch.name, "tiny-f32.gguf"), vocabulary_only=True)
    for name, record in golden["sequences"].items():
        if record.get("text"):
            check(model.tokenize(record["text"].encode()) == record["ids"][1:], f"{name}: tokens differ from tiktoken's")
    model.close()


def check_vision():
    """The vision file's values against the fixture's decoded tensors."""
    directory = os.path.join(FIXTURES, "kimi-vl")
    if not os.path.isdir(directory):
        return
    path = os.path.join(scratch.name, "vision.gguf")
    export(directory, "language.gguf", "--mmproj", path)
    reader = gguf.GGUFReader(path)
    check(reader.fields["general.architecture"].contents() == "clip", "vision: general.architecture")
    check(reader.fields["clip.projector_type"].contents() == "kimivl", "vision: clip.projector_type")
    tensors = {t.name: gguf.quants.dequantize(np.asarray(t.data), t.tensor_type) if t.tensor_type.name == "BF16" else np.asarray(t.data)
               for t in reader.tensors}
    values = {}
    for file in sorted(f for f in os.listdir(directory) if f.endswith(".safetensors")):
        blob = open(os.path.join(directory, file), "rb").read()
        length = int.from_bytes(blob[:8], "little")
        for name, record in json.loads(blob[8:8 + length]).items():
            if name.startswith(("vision_tower.", "multi_modal_projector.")):
                begin, end = record["data_offsets"]
                bits = np.frombuffer(blob[8 + length + begin:8 + length + end], "<u2").astype(np.uint32) << 16
                values[name] = bits.view(np.float32).reshape(record["shape"])
    tower, projector = "vision_tower.", "multi_modal_projector."
    expected = {"v.patch_embd.weight": values[tower + "patch_embed.proj.weight"], "v.patch_embd.bias": values[tower + "patch_embed.proj.bias"],
                "v.position_embd.weight": values[tower + "patch_embed.pos_emb.weight"].reshape(-1, 32)}
    for kind in ("weight", "bias"):
        expected[f"v.post_ln.{kind}"] = values[f"{tower}encoder.final_layernorm.{kind}"]
        expected[f"mm.input_norm.{kind}"] = values[f"{projector}pre_norm.{kind}"]
        expected[f"mm.1.{kind}"], expected[f"mm.2.{kind}"] = values[f"{projector}linear_1.{kind}"], values[f"{projector}linear_2.{kind}"]
        for block in range(2):
            parts = {"ln1": "norm0", "ln2": "norm1", "attn_out": "wo", "ffn_up": "mlp.fc0", "ffn_down": "mlp.fc1"}
            for ours, theirs in parts.items():
                expected[f"v.blk.{block}.{ours}.{kind}"] = values[f"{tower}encoder.blocks.{block}.{theirs}.{kind}"]
            for i, ours in enumerate(("attn_q", "attn_k", "attn_v")):
                expected[f"v.blk.{block}.{ours}.{kind}"] = np.split(values[f"{tower}encoder.blocks.{block}.wqkv.{kind}"], 3)[i]
    check(set(tensors) == set(expected), f"vision: names: {sorted(set(tensors) ^ set(expected))}")
    for name in expected:
        check(np.array_equal(tensors[name].reshape(expected[name].shape), expected[name]), f"vision: {name}: values differ")
    print(f"vision: {len(expected)} tensors compared")


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
    golden = json.load(open(os.path.join(directory, "golden.json")))
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
        truth = raw(directory, record)
        good = np.isfinite(truth) & np.isfinite(ours)
        check(np.array_equal(ours[good], truth[good].astype(np.float32)), f"v4-flash: {name}: values differ")
        compared += 1
    print(f"v4-flash: {compared} experts compared")


check_truths()
check_vision()
check_v4()
for kind in ("v3-groups", "kimi-vl", "k2-thinking", "k25"):
    check_values(kind)
check_tokens()
check_loading()
check_mixtures(TINY, "tiny")
for kind in ("kimi-vl", "qwen3-dense", "llama-dense"):
    check_mixtures(os.path.join(FIXTURES, kind), kind)
print(f"{checks} checks, {failures} failed")
sys.exit(1 if failures else 0)
