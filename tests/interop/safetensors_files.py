#!/usr/bin/python3
"""tests/interop/safetensors_files.py PROGRAM: what mica export --format safetensors writes, judged by safetensors (PyPI), which must read every
tensor bit for bit and would have written the same files, byte for byte; and the bf16 export by numpy, which rounds the fixtures' decoded truths
itself. Exit status 77: skipped."""
import ctypes
import glob
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile

import peers
from peers import ROOT, check

with peers.needed():
    import numpy as np
    import safetensors
    from safetensors import TensorSpec, deserialize, safe_open, serialize

    import truths

PROGRAM = os.path.abspath(sys.argv[1])
TINY = os.path.join(ROOT, "models", "tiny-k2")
FIXTURES = os.path.join(ROOT, "..", "shared", "fixtures", "public")
KINDS = ["v3-groups", "v3-groups-ue8m0", "kimi-vl", "k2-thinking", "k25", "v4-flash", "qwen3-dense", "llama-dense"]
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
         "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


def export(checkpoint, directory, *options):
    done = subprocess.run([PROGRAM, "export", checkpoint, "--format", "safetensors", "-o", directory, *options], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: mica export {checkpoint} {' '.join(options)}: {done.returncode}: {done.stderr}")


def shards(directory):
    return sorted(glob.glob(os.path.join(directory, "*.safetensors")))


def read_plainly(directory):
    """{name: (dtype, shape, bytes)}, by the format's definition alone."""
    tensors = {}
    for path in shards(directory):
        with open(path, "rb") as file:
            data = file.read()
        length = struct.unpack("<Q", data[:8])[0]
        for name, entry in json.loads(data[8:8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name] = (entry["dtype"], tuple(entry["shape"]), data[8 + length + begin:8 + length + end])
    return tensors


def read_by_reference(path):
    with open(path, "rb") as file:
        return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in deserialize(file.read())}


def write_by_reference(tensors):
    """The same tensors, as safetensors serialises them."""
    buffers, specs = [], {}
    for name, (dtype, shape, data) in tensors.items():
        buffers.append(ctypes.create_string_buffer(data, max(len(data), 1)))
        specs[name] = TensorSpec(dtype=TYPES[dtype], shape=list(shape), data_ptr=ctypes.addressof(buffers[-1]), data_len=len(data))
    return bytes(serialize(specs, metadata={"format": "pt"}))


def check_files(what, directory):
    """Every shard is what the reference writer would have written, and the index says where each tensor is."""
    found = {}
    for path in shards(directory):
        tensors = read_by_reference(path)
        with open(path, "rb") as file:
            check(file.read() == write_by_reference(tensors), f"{what}: {os.path.basename(path)}: the reference writer's bytes")
        with safe_open(path, framework="numpy") as opened:
            check(set(opened.keys()) == set(tensors) and opened.metadata() == {"format": "pt"}, f"{what}: safe_open")
            for name, (dtype, shape, data) in tensors.items():
                if dtype == "F32":
                    check(opened.get_tensor(name).tobytes() == data, f"{what}: {name} by safe_open")
        for name in tensors:
            check(name not in found, f"{what}: {name} in one shard only")
            found[name] = os.path.basename(path)
    index = os.path.join(directory, "model.safetensors.index.json")
    if os.path.exists(index):
        content = json.load(open(index))
        check(content["weight_map"] == found, f"{what}: weight_map")
        check(content["metadata"]["total_size"] == sum(len(data) for _, _, data in read_plainly(directory).values()), f"{what}: total_size")
    else:
        check(len(shards(directory)) == 1, f"{what}: an index for several shards")


def check_copy(what, checkpoint, scratch):
    source = read_plainly(checkpoint)
    size = sum(len(data) for _, _, data in source.values())
    for name, options in (("one", []), ("many", ["--shard-size", str(size // 4)])):
        directory = os.path.join(scratch, f"{what}-{name}")
        export(checkpoint, directory, *options)
        check_files(f"{what} {name}", directory)
        check(read_plainly(directory) == source, f"{what} {name}: every tensor, bit for bit")
        for path in glob.glob(os.path.join(checkpoint, "*")):
            base = os.path.basename(path)
            if os.path.isfile(path) and ".safetensors" not in base:
                check(open(path, "rb").read() == open(os.path.join(directory, base), "rb").read(), f"{what} {name}: {base} as it was")


def to_bf16(values):
    """To nearest, ties to even; the values are finite."""
    bits = values.astype("<f4").view(np.uint32).astype(np.uint64)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype("<u2")


def check_bf16(what, checkpoint, scratch):
    directory = os.path.join(scratch, what + "-bf16")
    export(checkpoint, directory, "--dtype", "bf16", "--shard-size", "1MB")
    check_files(what + " bf16", directory)
    tensors, golden = read_plainly(directory), truths.load(checkpoint)
    config = json.load(open(os.path.join(directory, "config.json")))
    source = json.load(open(os.path.join(checkpoint, "config.json")))
    for part in (config, config.get("text_config", {})):
        check("quantization_config" not in part and part.get("torch_dtype", "bfloat16") == "bfloat16", f"{what}: config.json")
    check(config.get("torch_dtype", config.get("dtype")) == "bfloat16", f"{what}: config.json names the type")
    check(set(source) - set(config) <= {"quantization_config", "expert_dtype"}, f"{what}: config.json keeps the rest")
    compared = {"BF16": 0, "as stored": 0}
    check(set(tensors) == set(golden["decoded_sha256"]), f"{what}: every weight, and nothing else")
    for name, truth in golden["decoded"].items():
        dtype, shape, data = tensors[name]
        raw = truths.raw(checkpoint, truth).ravel()
        check(list(shape) == truth["shape"], f"{what}: {name}: shape")
        if dtype == "BF16":
            check((np.frombuffer(data, "<u2") == to_bf16(raw)).all(), f"{what}: {name}: the decoded truth, rounded")
            compared["BF16"] += 1
        else:  # held in float32 on purpose, or no floating number
            check(data == raw.tobytes(), f"{what}: {name}: as stored")
            compared["as stored"] += 1
    for name, (dtype, shape, data) in tensors.items():  # what BF16 holds exactly is the truth itself
        if dtype == "F32":
            check(hashlib.sha256(data).hexdigest() == golden["decoded_sha256"][name], f"{what}: {name}: float32 is kept")
            check(not name.endswith(".weight"), f"{what}: {name}: a weight in float32")
    print(f"{what}: {compared['BF16']} decoded truths rounded, {compared['as stored']} as stored, {len(tensors)} tensors")
    check(compared["BF16"] > 0, f"{what}: nothing was compared")


with tempfile.TemporaryDirectory() as place:
    check_copy("tiny-k2", TINY, place)
    if os.path.isdir(FIXTURES):
        for kind in KINDS:
            check_copy(kind, os.path.join(FIXTURES, kind), place)
            check_bf16(kind, os.path.join(FIXTURES, kind), place)
    else:
        print("skipped: the fixtures beside the repository are absent")
print(f"by safetensors {safetensors.__version__} and numpy")
peers.finish()
