#!/usr/bin/python3
"""tests/interop/gguf_written.py PROGRAM: what mica's GGUF writer writes, read by gguf (PyPI) and merged by llama.cpp's own tool where there is
one: metadata, tensors of every type, splits, alignment; and the same bytes twice. Exit status 77: skipped."""
import glob
import os
import subprocess
import sys
import tempfile

import peers
from peers import PEERS, check

with peers.needed():
    import gguf
    import numpy as np

BUILD = os.path.dirname(os.path.abspath(sys.argv[1]))
WRITE = os.path.join(BUILD, "tests", "write_gguf")
TYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
         "IQ4_NL", "IQ4_XS", "MXFP4"]
METADATA = {"general.architecture": "test", "test.u8": 250, "test.u16": 65000, "test.u32": 4000000000, "test.i32": -2000000000,
            "test.u64": 2 ** 63 + 5, "test.f32": float(np.float32(0.1)), "test.bool": True, "test.ints": [1, -2, 3],
            "test.floats": [0.5, -1.25], "test.strings": ["a", "", "ü€𐍈 \n"]}


def expected_bytes(number, size):
    at = np.arange(size, dtype=np.uint64)
    return ((number * 11 + at * 7 + at // 64) % 64).astype(np.uint8).tobytes()


def check_keys(what, reader, alignment):
    for key, value in METADATA.items():
        field = reader.get_field(key)
        check(field is not None and field.contents() == value, f"{what}: {key}: {field and field.contents()}")
    aligned = reader.get_field("general.alignment")
    check((aligned.contents() if aligned else 32) == alignment, f"{what}: general.alignment")


def check_tensors(what, tensors):
    check(sorted(tensors) == sorted(f"blk.0.{name}.weight" for name in TYPES), f"{what}: tensors {sorted(tensors)}")
    for number, name in enumerate(TYPES):
        tensor = tensors.get(f"blk.0.{name}.weight")
        if tensor is None:
            continue
        check(tensor.tensor_type.name == name, f"{what}: {name} is {tensor.tensor_type.name}")
        check(list(tensor.shape) == ([5] if name == "F64" else [512, 3, 2]), f"{what}: {name}: shape {list(tensor.shape)}")
        data = tensor.data.tobytes()
        check(data == expected_bytes(number, len(data)), f"{what}: {name}: other bytes")


def write(path, split, alignment):
    done = subprocess.run([WRITE, path, str(split), str(alignment)], capture_output=True)
    check(done.returncode == 0, f"write_gguf {split} {alignment}: {done.stderr.decode()}")


def check_set(directory, split, alignment):
    what = f"split {split}, alignment {alignment}"
    path = os.path.join(directory, "one.gguf")
    write(path, split, alignment)
    files = sorted(glob.glob(os.path.join(directory, "one*.gguf")))
    readers = [gguf.GGUFReader(file) for file in files]
    check(not glob.glob(os.path.join(directory, "*.partial")), f"{what}: partial files left")
    check_keys(what, readers[0], alignment)
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    check_tensors(what, tensors)
    for number, reader in enumerate(readers):
        if len(readers) > 1:
            values = [reader.get_field(f"split.{key}").contents() for key in ("no", "count", "tensors.count")]
            kinds = [reader.get_field(f"split.{key}").types[0].name for key in ("no", "count", "tensors.count")]
            check(values == [number, len(readers), len(TYPES)] and kinds == ["UINT16", "UINT16", "INT32"], f"{what}: {values} {kinds}")
            check(os.path.basename(files[number]) == f"one-{number + 1:05}-of-{len(readers):05}.gguf", f"{what}: {files[number]}")
    again = os.path.join(directory, "two.gguf")
    write(again, split, alignment)
    for file in files:
        with open(file, "rb") as first, open(file.replace("/one", "/two"), "rb") as second:
            check(first.read() == second.read(), f"{what}: {os.path.basename(file)} is not the same twice")
    return files


def merge(directory, first):
    found = [os.environ.get("MICA_LLAMA_GGUF_SPLIT", "")] + glob.glob(os.path.join(PEERS, "llama.cpp", "build", "bin", "llama-gguf-split"))
    tool = next((path for path in found if path and os.access(path, os.X_OK)), None)
    if tool is None:
        print("llama-gguf-split is absent: it does not merge them")
        return
    merged = os.path.join(directory, "merged.gguf")
    done = subprocess.run([tool, "--merge", first, merged], capture_output=True)
    check(done.returncode == 0, f"{tool}: {done.stderr.decode()[-500:]}")
    reader = gguf.GGUFReader(merged)
    check_keys("merged", reader, 32)
    check_tensors("merged", {tensor.name: tensor for tensor in reader.tensors})
    print("merged by llama.cpp")


for split, alignment in ((0, 32), (0, 256), (8000, 32), (8000, 128), (1, 32)):
    with tempfile.TemporaryDirectory() as directory:
        files = check_set(directory, split, alignment)
        print(f"split {split}, alignment {alignment}: {len(files)} files")
        if split == 8000 and alignment == 32:
            merge(directory, files[0])
peers.finish()
