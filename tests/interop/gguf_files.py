#!/usr/bin/python3
"""tests/interop/gguf_files.py PROGRAM: files written by gguf (PyPI), and split by llama.cpp's own tool where there is one, as mica reads
them: the same metadata, the same names and shapes, the same floats of every type. Exit status 77: skipped."""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

import peers
from peers import ROOT, PEERS, check

with peers.needed():
    import gguf
    import numpy as np
    from gguf import GGMLQuantizationType as Type, quants

import make_gguf
import truths

PROGRAM = os.path.abspath(sys.argv[1])
BUILD = os.path.dirname(os.path.abspath(sys.argv[1]))
DUMP = os.path.join(BUILD, "tests", "dump_source")
BLOCKS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
PLAIN = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}


def dump(path):
    """{key: (type, is array, values)}, {tensor: (dtype, shape, floats)}"""
    done = subprocess.run([DUMP, path], capture_output=True)
    if done.returncode:
        sys.exit(f"failed: dump_source {path}: {done.returncode}: {done.stderr.decode()}")
    keys, tensors, data, at = {}, {}, done.stdout, 0
    while at < len(data):
        end = data.index(b"\n", at)
        words = data[at:end].decode().split(" ")
        at = end + 1
        if words[0] == "key":
            keys[words[1]] = (words[2], words[3] == "array", words[4:])
        else:
            count = int(words[4])
            shape = tuple(int(size) for size in words[3].split(",")) if words[3] else ()
            tensors[words[1]] = (words[2], shape, np.frombuffer(data, dtype="<f4", count=count, offset=at))
            at += 4 * count
    return keys, tensors


def random_blocks(generator, name, rows, columns):
    elements, size = gguf.GGML_QUANT_SIZES[Type[name]]
    blocks = generator.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    for at in {"Q2_K": [81, 83], "Q3_K": [109], "Q6_K": [209], "MXFP4": []}.get(name, [1, 3]):
        blocks[:, :, at] &= 0xBB  # finite halves
    if name == "MXFP4":
        blocks[:, :, 0] = 100 + blocks[:, :, 0] % 50
    return blocks.reshape(rows, -1)


def same_bits(got, expected):
    expected = np.ascontiguousarray(expected, dtype=np.float32).ravel()
    return got.size == expected.size and np.array_equal(got.view(np.uint32), expected.view(np.uint32))


def write(path, alignment):
    generator = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "test")
    expected_keys, expected = {}, {}
    if alignment:
        writer.add_custom_alignment(alignment)
        expected_keys["general.alignment"] = ("u32", False, [str(alignment)])
    expected_keys["general.architecture"] = ("string", False, ["x" + b"test".hex()])
    for name, add, kind, value in (("u8", writer.add_uint8, "u8", 250), ("i8", writer.add_int8, "i8", -5), ("u16", writer.add_uint16, "u16", 65000),
                                   ("i16", writer.add_int16, "i16", -3000), ("u32", writer.add_uint32, "u32", 4 * 10 ** 9),
                                   ("i32", writer.add_int32, "i32", -2 * 10 ** 9), ("u64", writer.add_uint64, "u64", 2 ** 63 + 5),
                                   ("i64", writer.add_int64, "i64", -2 ** 62), ("bool", writer.add_bool, "bool", True)):
        add("test." + name, value)
        expected_keys["test." + name] = (kind, False, [str(int(value))])
    writer.add_float32("test.f32", 0.1)
    writer.add_float64("test.f64", 0.1)
    expected_keys["test.f32"] = ("f32", False, [float(np.float32(0.1))])
    expected_keys["test.f64"] = ("f64", False, [0.1])
    for name, values, kind in (("ints", [1, -2, 3], "i32"), ("floats", [0.5, -1.25], "f32"), ("strings", ["a", "", "ü€𐍈 \n"], "string")):
        writer.add_array("test." + name, values)
        expected_keys["test." + name] = (kind, True, ["x" + value.encode().hex() if kind == "string" else
                                                      str(value) if kind == "i32" else value for value in values])
    for name in BLOCKS:
        blocks = random_blocks(generator, name, 6, 512)
        writer.add_tensor(f"blk.0.{name.lower()}.weight", blocks.reshape(2, 3, -1), raw_dtype=Type[name])
        expected[f"blk.0.{name.lower()}.weight"] = (name, (2, 3, 512), quants.dequantize(blocks, Type[name]))
    for name, dtype in PLAIN.items():
        values = (generator.standard_normal((3, 5, 7)) * 50).astype(dtype)
        writer.add_tensor(f"plain.{name.lower()}", values)
        expected[f"plain.{name.lower()}"] = (name, (3, 5, 7), values.astype(np.float32))
    halves = generator.integers(0, 0x7F00, 11, dtype=np.uint16)
    writer.add_tensor("plain.bf16", halves, raw_dtype=Type.BF16)
    expected["plain.bf16"] = ("BF16", (11,), (halves.astype(np.uint32) << 16).view(np.float32))
    writer.add_tensor("vector", np.arange(5, dtype=np.float32))
    expected["vector"] = ("F32", (5,), np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected_keys, expected


def compare(what, keys, tensors, expected_keys, expected):
    for key, (kind, is_array, values) in expected_keys.items():
        got = keys.get(key)
        check(got is not None and got[:2] == (kind, is_array), f"{what}: key {key}: {got} for {kind}")
        if got is not None:
            words = [float.fromhex(word) for word in got[2]] if kind in ("f32", "f64") else got[2]
            check(words == [float(value) if kind in ("f32", "f64") else value for value in values], f"{what}: key {key}: {words}")
    check(sorted(tensors) == sorted(expected), f"{what}: tensors {sorted(tensors)}")
    for name, (dtype, shape, values) in expected.items():
        if name in tensors:
            check(tensors[name][:2] == (dtype, shape), f"{what}: {name}: {tensors[name][:2]} for {dtype} {shape}")
            check(same_bits(tensors[name][2], values), f"{what}: {name}: other floats")


def split_tool():
    found = [os.environ.get("MICA_LLAMA_GGUF_SPLIT", "")] + glob.glob(os.path.join(PEERS, "llama.cpp", "build", "bin", "llama-gguf-split"))
    return next((path for path in found if path and os.access(path, os.X_OK)), None)


VALIDATE = """
import json, sys
try:
    import jsonschema
except ImportError:
    sys.exit(77)
jsonschema.validate(json.load(sys.stdin), json.load(open(sys.argv[1])))
"""


def inspect(path):
    """The report, after it was judged by its schema (with the system's Python, which has jsonschema)."""
    done = subprocess.run([PROGRAM, "inspect", path, "--json"], capture_output=True)
    check(done.returncode == 0, f"inspect {path}: {done.stderr.decode()}")
    schema = os.path.join(ROOT, "docs", "schemas", "inspect.schema.json")
    judged = subprocess.run(["/usr/bin/python3", "-c", VALIDATE, schema], input=done.stdout, capture_output=True)
    check(judged.returncode in (0, 77), f"inspect {path}: {judged.stderr.decode()[-500:]}")
    return json.loads(done.stdout)


def models(directory):
    """A model that gguf wrote, in both layouts: every tensor used, every value as written, and the verbs that take a checkpoint."""
    for kind, legacy in (("F32", False), ("Q8_0", False), ("Q8_0", True), ("MXFP4", False)):
        path = os.path.join(directory, f"tiny-{kind}-{legacy}.gguf")
        written = make_gguf.convert(os.path.join(ROOT, "models", "tiny-k2"), path, kind, legacy)
        report = inspect(path)
        check(report["tensors"] == {"total": len(written), "used": len(written), "ignored": 0, "unknown": 0}, f"{path}: {report['tensors']}")
        check(report["model"]["routed_experts"] == 24 and report["model"]["family"] == "deepseek_v3", f"{path}: {report['model']}")
        _, tensors = dump(path)
        for name, values in written.items():
            check(same_bits(tensors[name][2], values), f"{path}: {name}: other floats")
        for words in (["verify", path], ["index", path, "-o", os.path.join(directory, f"vindex-{kind}-{legacy}"), "--features", "8", "--layers", "1"]):
            done = subprocess.run([PROGRAM, *words], capture_output=True)
            check(done.returncode == 0, f"{' '.join(words)}: {done.stderr.decode()}")
    print("tiny-k2 in F32, Q8_0 (both layouts) and MXFP4: inspect, verify, index")


def logits(path, ids):
    with tempfile.NamedTemporaryFile(suffix=".f32") as out:
        words = ["logits", path, "--ids", ",".join(map(str, ids)), "--exact", "-o", out.name]
        done = subprocess.run([PROGRAM, *words], capture_output=True)
        check(done.returncode == 0, f"logits {path}: {done.stderr.decode()}")
        return np.fromfile(out.name, dtype="<f4").reshape(len(ids), -1) if done.returncode == 0 else np.full((len(ids), 1), np.nan)


def close(what, got, expected):
    check(got.size == expected.size and np.abs(got.ravel() - expected.ravel()).max() <= 1e-4, f"{what}: logits differ by more than 1e-4")


def forward(directory):
    """F32 files of the fixtures: the logits of the float64 truths."""
    fixtures = os.path.join(ROOT, "..", "shared", "fixtures", "public")
    if not os.path.isdir(fixtures):
        print("../shared is absent: no logits are compared with truths")
        return
    for name, legacy in (("v3-groups", False), ("v3-groups-ue8m0", True), ("kimi-vl", False), ("llama-dense", None), ("qwen3-dense", None)):
        path, source = os.path.join(directory, f"{name}.gguf"), os.path.join(fixtures, name)
        if legacy is None:
            make_gguf.convert_dense(source, path)
        else:
            make_gguf.convert(source, path, "F32", legacy)
        sequences = truths.load(source)["sequences"]
        for sequence in sequences.values():
            close(name, logits(path, sequence["ids"]), truths.raw(source, sequence["logits"]).ravel())
    scaled = os.path.join(directory, "llama3")
    shutil.copytree(os.path.join(fixtures, "llama-dense"), scaled)
    with open(os.path.join(scaled, "config.json")) as file:
        config = json.load(file)
    config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 16}
    with open(os.path.join(scaled, "config.json"), "w") as file:
        json.dump(config, file)
    make_gguf.convert_dense(scaled, scaled + ".gguf")
    ids = sequences["b"]["ids"]
    ids = [number % config["vocab_size"] for number in ids]
    close("llama3's frequencies as a tensor", logits(scaled + ".gguf", ids), logits(scaled, ids))
    print("logits of five fixtures in F32, and of llama3's scaling")


def main():
    with tempfile.TemporaryDirectory() as directory:
        for alignment in (256, 64, None):
            path = os.path.join(directory, f"aligned-{alignment}.gguf")
            expected_keys, expected = write(path, alignment)
            compare(f"alignment {alignment}", *dump(path), expected_keys, expected)
        print(f"{len(expected)} tensors and {len(expected_keys)} keys of gguf's, at three alignments")
        tool = split_tool()
        if tool is None:
            print("llama-gguf-split is absent: its files are not read")
        else:
            for options in (["--split-max-tensors", "5"], ["--split-max-tensors", "4", "--no-tensor-first-split"]):
                prefix = os.path.join(directory, f"split{len(options)}")
                path = os.path.join(directory, "aligned-None.gguf")
                done = subprocess.run([tool, "--split", *options, path, prefix], capture_output=True)
                check(done.returncode == 0, f"{tool}: {done.stderr.decode()}")
                files = sorted(glob.glob(prefix + "-00001-of-*.gguf"))
                check(len(files) == 1, f"splits: {files}")
                compare(" ".join(options), *dump(files[0]), expected_keys, expected)
                print(f"split by llama.cpp: {os.path.basename(files[0])}")
        inspect(os.path.join(directory, "aligned-None.gguf"))
        models(directory)
        forward(directory)
    peers.finish()


main()
