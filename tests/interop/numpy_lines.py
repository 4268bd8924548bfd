#!/usr/bin/python3
"""tests/interop/numpy_lines.py PROGRAM: a vindex read by its users' code, judged by numpy alone.

Indexes models/tiny-k2, runs the README's numpy lines as they stand, compares every vector, value and statistic with numpy.linalg.svd of the
gate decoded here (its own fp8 decoder), and validates every JSON file and report against docs/schemas. Exit status 77: skipped."""
import glob
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile

try:
    import jsonschema
    import numpy as np
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

PROGRAM = os.path.abspath(sys.argv[1])
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
MODEL = os.path.join(ROOT, "models", "tiny-k2")
FIXTURES = os.path.join(ROOT, "..", "shared", "fixtures", "public")

with open(os.path.join(ROOT, "README.md")) as readme:
    LINES = readme.read().split("```python\n")[1].split("```")[0]


def run(*arguments):
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"mica {' '.join(arguments)}: {done.returncode}: {done.stderr}"
    return done.stdout


def check(holds, what):
    if not holds:
        print(f"failed: {what}")
        sys.exit(1)


# --- a checkpoint, read without mica ---

def e4m3_table():
    table = np.zeros(256)
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        value = mantissa * 2.0 ** -9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        table[code] = np.nan if code & 127 == 127 else -value if code & 128 else value
    return table


def read_tensors(directory):
    tensors = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        with open(path, "rb") as file:
            data = file.read()
        length = struct.unpack("<Q", data[:8])[0]
        for name, entry in json.loads(data[8:8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name] = (entry["dtype"], entry["shape"], data[8 + length + begin:8 + length + end])
    return tensors


def decode(tensors, name):
    dtype, shape, data = tensors[name]
    if dtype == "F8_E4M3":
        rows, columns = shape
        codes = e4m3_table()[np.frombuffer(data, np.uint8)].reshape(rows, columns)
        scale_dtype, scale_shape, scale_data = tensors[name + "_scale_inv"]
        check(scale_dtype == "F32", "scales are F32")
        scales = np.frombuffer(scale_data, "<f4").astype(np.float64).reshape(scale_shape)
        # The weight is a float32: code times scale, rounded once.
        return (codes * scales.repeat(128, 0)[:rows].repeat(128, 1)[:, :columns]).astype(np.float32).astype(np.float64)
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64).reshape(shape)
    return np.frombuffer(data, {"F32": "<f4", "F64": "<f8"}[dtype]).astype(np.float64).reshape(shape)


# --- comparisons ---

def check_expert(what, weight, vectors, values, expert_statistics):
    _, truth, right = np.linalg.svd(weight, full_matrices=False)
    count = len(values)
    check(np.abs(values - truth[:count]).max() <= 1e-5 * truth[0], f"{what}: singular values")
    check(np.abs(vectors.astype(np.float64) @ vectors.T.astype(np.float64) - np.eye(count)).max() <= 1e-5, f"{what}: orthonormal rows")
    check((vectors[np.arange(count), np.abs(vectors).argmax(1)] > 0).all(), f"{what}: the largest component is positive")
    image = vectors.astype(np.float64) @ weight.T
    check(np.abs(np.linalg.norm(image, axis=1) - truth[:count]).max() <= 1e-5 * truth[0], f"{what}: |W v| = s")
    for feature in range(count):  # where the gap is wide, the very vector and sign-fixed
        gap = min(abs(truth[feature] - truth[other]) for other in (feature - 1, feature + 1) if 0 <= other < len(truth))
        if gap > 1e-2 * truth[0]:
            check(abs(right[feature] @ vectors[feature]) >= 1 - 1e-5, f"{what}: vector {feature}")
    squares = truth ** 2
    share = truth / truth.sum()
    expected = {
        "var8": squares[:8].sum() / squares.sum(), "var64": squares[:64].sum() / squares.sum(), "s0": truth[0], "s1": truth[1],
        "s0_over_s1": truth[0] / truth[1], "stable_rank": squares.sum() / squares[0], "frobenius": np.linalg.norm(weight),
        "participation_ratio": squares.sum() ** 2 / (squares ** 2).sum(), "effective_rank": np.exp(-(share * np.log(share)).sum()),
        "above_edge": (truth > np.linalg.norm(weight) / np.sqrt(weight.size) * (np.sqrt(weight.shape[0]) + np.sqrt(weight.shape[1]))).sum(),
    }
    for name, value in expected.items():
        if name in expert_statistics:
            check(abs(expert_statistics[name] - value) <= 1e-6 * abs(value), f"{what}: {name}: expected {value}, got {expert_statistics[name]}")


def of_expert(group, expert):
    return {name: rows["per_expert"][expert] for name, rows in group["statistics"].items()}


def check_quartiles(layer, group):
    values = np.array(group["statistics"]["var64"]["per_expert"])
    for key, q in (("q25_var64", 25), ("median_var64", 50), ("q75_var64", 75)):
        check(abs(layer[key] - np.percentile(values, q)) <= 1e-12, f"{key}: numpy's default quantile")


def check_schemas(directory):
    for path in sorted(glob.glob(os.path.join(directory, "*.json"))):
        validate(os.path.basename(path)[:-5], json.load(open(path)))


def validate(name, value):
    schema = json.load(open(os.path.join(ROOT, "docs", "schemas", name + ".schema.json")))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(value)


def check_checksums(directory):
    text = open(os.path.join(directory, "checksums.json")).read()
    sums = json.loads(text)
    check(hashlib.sha256(text.replace(sums["self"], "0" * 64, 1).encode()).hexdigest() == sums["self"], "checksums.json: its own digest")
    for name, entry in sums["files"].items():
        data = open(os.path.join(directory, name), "rb").read()
        check(len(data) == entry["bytes"] and hashlib.sha256(data).hexdigest() == entry["sha256"], f"checksum of {name}")


def check_source_tensors(directory, tensors):
    recorded = json.load(open(os.path.join(directory, "source_tensors.json")))["tensors"]
    for name, entry in recorded.items():
        dtype, shape, data = tensors[name]
        line = " ".join([dtype, *map(str, shape)]) + "\n"
        check(hashlib.sha256(line.encode() + data).hexdigest() == entry["sha256"], f"identity of {name}")


def read_group(directory, index, key):
    files = index["files"]
    return (np.fromfile(os.path.join(directory, key + "gate_vectors.bin"), "<f4").reshape(files[key + "gate_vectors.bin"]["shape"]),
            np.fromfile(os.path.join(directory, key + "gate_singular_values.bin"), "<f4").reshape(files[key + "gate_singular_values.bin"]["shape"]))


def link_model(scratch):
    """The model as the Hugging Face cache has it, a directory of links: --hash-source writes into it."""
    directory = os.path.join(scratch, "tiny")
    os.mkdir(directory)
    for name in os.listdir(MODEL):
        os.symlink(os.path.join(MODEL, name), os.path.join(directory, name))
    return directory


def check_tiny(scratch):
    directory, model = os.path.join(scratch, "tiny.vindex"), link_model(scratch)
    report = run("index", model, "-o", directory, "--spectra", "gate,up,down", "--full-spectrum", "gate", "--hash-source", "--json")
    validate("index", json.loads(report))
    validate("index", json.loads(run("index", MODEL, "-o", directory + ".dry", "--dry-run", "--json")))
    validate("stats", json.loads(run("stats", directory, "--json")))
    check_schemas(directory)
    check_checksums(directory)
    validate("verify", json.loads(run("verify", directory, "--json")))
    validate("verify", json.loads(run("verify", model, "--json")))
    check(open(directory + ".source.sha256").read() == open(os.path.join(model, "mica.sha256")).read(), "the hashes beside the vindex and in the model")
    for line in open(directory + ".source.sha256"):
        digest, name = line.rstrip("\n").split("  ")
        check(hashlib.sha256(open(os.path.join(MODEL, name), "rb").read()).hexdigest() == digest, f"sha256 of {name}")

    tensors = read_tensors(MODEL)
    check_source_tensors(directory, tensors)
    os.chdir(directory)
    user = {}
    check(LINES.strip() in open(os.path.join(ROOT, "README.md"), encoding="utf-8").read(), "README.md shows these lines")
    exec(LINES, user)  # as they stand there
    index = user["idx"]
    phase1 = json.load(open("phase1_moe_svd.json"))
    values = read_group(directory, index, "")[1]
    check(list(index["layers"]) == ["1", "2", "3", "4"] and index["num_feats"] == 64, "layers of gate_vectors.bin")
    for slot, layer in enumerate((1, 2, 3, 4)):
        vectors = user["get_layer"](layer)
        check(vectors.shape == (24, 64, 256), "shape of a layer")
        group = phase1["layers"][str(layer)]["routed"]["gate"]
        check_quartiles(index["layers"][str(layer)], group)
        for expert in range(24):
            weight = decode(tensors, f"model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight")
            check_expert(f"layer {layer} expert {expert}", weight, vectors[expert], values[slot, expert], of_expert(group, expert))
        vectors, shared = read_group(directory, index, "shared_")
        weight = decode(tensors, f"model.layers.{layer}.mlp.shared_experts.gate_proj.weight")
        check_expert(f"layer {layer} shared", weight, vectors[slot, 0], shared[slot, 0], of_expert(phase1["layers"][str(layer)]["shared"]["gate"], 0))
        router = json.load(open("phase2_router_svd.json"))["layers"][str(layer)]
        truth = np.linalg.svd(decode(tensors, f"model.layers.{layer}.mlp.gate.weight"), compute_uv=False)
        check(np.abs(np.array(router["singular_values"]) - truth).max() <= 1e-5 * truth[0], f"router of layer {layer}")
        for k, share in router["topk_variance"].items():
            check(abs(share - (truth[:int(k)] ** 2).sum() / (truth ** 2).sum()) <= 1e-6, f"router of layer {layer}: top {k}")
    vectors, dense = read_group(directory, index, "dense_")
    weight = decode(tensors, "model.layers.0.mlp.gate_proj.weight")
    check_expert("layer 0 dense", weight, vectors[0, 0], dense[0, 0], of_expert(phase1["layers"]["0"]["dense"]["gate"], 0))
    for projection in ("up", "down"):
        weight = decode(tensors, f"model.layers.2.mlp.experts.5.{projection}_proj.weight")
        truth = np.linalg.svd(weight, compute_uv=False)
        got = phase1["layers"]["2"]["routed"][projection]["statistics"]["var64"]["per_expert"][5]
        check(abs(got - (truth[:64] ** 2).sum() / (truth ** 2).sum()) <= 1e-6, f"{projection}: var64")


def check_fixtures(scratch):
    """The JSON of every kind validates; a dense model is one expert a layer for the same lines."""
    if not os.path.isdir(FIXTURES):
        print("skipped: the fixtures beside the repository are absent")
        return
    for kind in ("v3-groups", "kimi-vl", "k2-thinking", "v4-flash", "llama-dense"):
        directory = os.path.join(scratch, kind)
        validate("index", json.loads(run("index", os.path.join(FIXTURES, kind), "-o", directory, "--full-spectrum", "gate", "--json")))
        validate("stats", json.loads(run("stats", directory, "--json")))
        check_schemas(directory)
    os.chdir(os.path.join(scratch, "llama-dense"))
    user = {}
    exec(LINES, user)
    tensors = read_tensors(os.path.join(FIXTURES, "llama-dense"))
    for layer in range(4):
        vectors = user["get_layer"](layer)
        check(vectors.shape == (1, 48, 48), "a dense model has one expert a layer, and no more vectors than columns")
        weight = decode(tensors, f"model.layers.{layer}.mlp.gate_proj.weight")
        truth = np.linalg.svd(weight, compute_uv=False)
        check(np.abs(np.linalg.norm(vectors[0].astype(np.float64) @ weight.T, axis=1) - truth).max() <= 1e-5 * truth[0], f"llama-dense: layer {layer}")


with tempfile.TemporaryDirectory() as place:
    check_tiny(place)
    check_fixtures(place)
    os.chdir(ROOT)
print("passed: numpy reads the vindex and agrees")
