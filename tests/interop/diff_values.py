#!/usr/bin/python3
"""tests/interop/diff_values.py PROGRAM: the numbers of mica diff against numpy's, of the repository's model and a copy with noise on its BF16 tensors
and other scales of its fp8. Exit status 77: skipped."""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

PROGRAM = os.path.abspath(sys.argv[1])
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
TINY = os.path.join(ROOT, "models", "tiny-k2")


def check(holds, what):
    if not holds:
        print(f"failed: {what}")
        sys.exit(1)


def shards(directory):
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(".safetensors")]


def header(path):
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries, 8 + length


def tensors(directory):
    found = {}
    for path in shards(directory):
        entries, base = header(path)
        data = open(path, "rb").read()
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            found[name] = (entry["dtype"], entry["shape"], data[base + begin:base + end])
    return found


def e4m3(codes):
    exponent, mantissa = (codes >> 3 & 15).astype(np.float64), (codes & 7).astype(np.float64)
    size = np.where(exponent == 0, mantissa * 2.0 ** -9, (8 + mantissa) * 2.0 ** (exponent - 10))
    return np.where(codes & 128, -size, size)


def decode(found, name):
    dtype, shape, data = found[name]
    if dtype == "F8_E4M3":
        scales = np.frombuffer(found[name + "_scale_inv"][2], "<f4").astype(np.float64).reshape(found[name + "_scale_inv"][1])
        codes = e4m3(np.frombuffer(data, np.uint8)).reshape(shape)
        return (codes * scales.repeat(128, 0)[:shape[0]].repeat(128, 1)[:, :shape[1]]).astype(np.float32).astype(np.float64)
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64).reshape(shape)
    return np.frombuffer(data, "<f4").astype(np.float64).reshape(shape)


def disturb(directory, generator):
    """Every BF16 tensor by another last bit here and there, every second scale by a factor."""
    for path in shards(directory):
        entries, base = header(path)
        data = bytearray(open(path, "rb").read())
        for name, entry in entries.items():
            begin, end = (base + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                values = np.frombuffer(bytes(data[begin:end]), "<u2").copy()
                values ^= (generator.random(values.size) < 0.1).astype("<u2")
                data[begin:end] = values.tobytes()
            elif name.endswith("_scale_inv") and generator.random() < 0.5:
                data[begin:end] = (np.frombuffer(bytes(data[begin:end]), "<f4") * np.float32(1.125)).tobytes()
        open(path, "wb").write(data)


def close(got, truth, what):
    check(got is not None and abs(got - truth) <= 1e-12 * max(1.0, abs(truth)), f"{what}: expected {truth}, got {got}")


with tempfile.TemporaryDirectory() as scratch:
    other = os.path.join(scratch, "other")
    shutil.copytree(TINY, other, copy_function=shutil.copyfile)
    disturb(other, np.random.default_rng(5))
    done = subprocess.run([PROGRAM, "diff", TINY, other, "--json"], capture_output=True, text=True)
    check(done.returncode == 1, f"exit status: expected 1, got {done.returncode}: {done.stderr}")
    report, a, b = json.loads(done.stdout), tensors(TINY), tensors(other)
    told = {weight["name"]: weight for weight in report["weights"]}
    weights = [name for name in a if not name.endswith("_scale_inv")]
    differing, sums = 0, {"a": 0.0, "d": 0.0}
    for name in weights:
        x, y = decode(a, name), decode(b, name)
        if (x == y).all():
            check(name not in told or told[name]["kind"] == "stored", f"{name}: expected it to be the same")
            continue
        differing += 1
        row, size = told[name], np.maximum(np.abs(x), np.abs(y))
        check(row["kind"] == "values" and row["values"] == x.size and row["values_differing"] == int((x != y).sum()), f"{name}: how many")
        close(row["max_absolute"], np.abs(x - y).max(), f"{name}: max_absolute")
        close(row["max_relative"], (np.abs(x - y)[size > 0] / size[size > 0]).max(), f"{name}: max_relative")
        close(row["frobenius_share"], np.linalg.norm(x - y) / np.linalg.norm(x), f"{name}: frobenius_share")
        close(row["cosine"], (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), f"{name}: cosine")
        if ".experts." in name and "shared" not in name:
            sums["a"] += (x ** 2).sum()
            sums["d"] += ((x - y) ** 2).sum()
    check(report["counts"]["values"] == differing and differing > 100, "how many weights differ")
    role = next(group for group in report["roles"] if group["role"] == "experts")
    close(role["frobenius_share"], np.sqrt(sums["d"] / sums["a"]), "the experts' share")
print(f"passed: numpy agrees on {differing} weights")
