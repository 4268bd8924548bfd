#!/usr/bin/python3
"""tests/interop/export_again.py PROGRAM: `mica export FILE.gguf --format gguf` on files of gguf (PyPI) and of llama-quantize (llama.cpp, npm
node-llama-cpp): what is not asked to change is the same bytes, what is asked for is of llama-quantize's types and loads. Exit status 77: skipped."""
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

library = llama.needed_library()

MICA = os.path.abspath(sys.argv[1])
TINY = os.path.join(ROOT, "models", "tiny-k2")
scratch = tempfile.TemporaryDirectory()


def path(name):
    return os.path.join(scratch.name, name)


def export(source, name, *options):
    done = subprocess.run([MICA, "export", source, "--format", "gguf", "-o", path(name), "--force", *options], capture_output=True, text=True)
    check(done.returncode == 0, f"export {source} {' '.join(options)}: {done.stderr}")
    return path(name)


def same_file(a, b, what):
    check(open(a, "rb").read() == open(b, "rb").read(), f"{what}: the bytes differ")


def types_of(file):
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}


def check_python_file():
    """gguf-py's own writer: an architecture of nobody's, types of all sorts, keys of all types."""
    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path("python.gguf"), "novel")
    writer.add_uint32("novel.block_count", 2)
    writer.add_array("novel.words", ["one", "zwei", "trois"])
    writer.add_array("novel.numbers", [1.5, -2.0])
    writer.add_float64("novel.wide", 0.1)
    writer.add_int64("novel.long", -5)
    writer.add_bool("novel.yes", True)
    for name, kind in (("blk.0.a.weight", "F32"), ("blk.0.b.weight", "F16"), ("blk.1.c.weight", "Q8_0"), ("blk.1.d.weight", "Q4_0"), ("e.weight", "BF16")):
        values = random.standard_normal((7, 64)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("blk.1.f.weight", random.standard_normal((2, 3, 5, 32)).astype(np.float32))
    writer.add_tensor("g", np.arange(9, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same_file(path("python.gguf"), export(path("python.gguf"), "python-copy.gguf"), "gguf's file")
    ours = types_of(export(path("python.gguf"), "python-q5.gguf", "--type", "q5_0"))
    check(ours["blk.0.a.weight"] == ours["blk.1.c.weight"] == ours["e.weight"] == "Q5_0" and ours["g"] == "I32", f"gguf's file as q5_0: {ours}")


NUMBERS = {"q4_k_m": 15, "q2_k": 10, "iq4_xs": 30, "mxfp4_moe": 38, "q6_k": 18, "bf16": 32}


def check_quantised_files():
    full = export(TINY, "f32.gguf", "--type", "f32")
    for mixture, number in NUMBERS.items():
        theirs = path(f"theirs-{mixture}.gguf")
        check(llama.quantise(library, full, theirs, number) == 0, f"llama-quantize {mixture}: {''.join(llama.messages)[-300:]}")
        same_file(theirs, export(theirs, "copy.gguf"), f"llama-quantize's {mixture}")
        ours = export(full, f"ours-{mixture}.gguf", "--type", mixture)
        expected, got = types_of(theirs), types_of(ours)
        check(got == expected, f"{mixture}: types (ours, llama-quantize's): "
                               f"{[(n, got.get(n), expected[n]) for n in expected if got.get(n) != expected[n]][:5]}")
        check(os.path.getsize(ours) == os.path.getsize(theirs), f"{mixture}: sizes {os.path.getsize(ours)}, {os.path.getsize(theirs)}")
    for source, mixture in (("ours-bf16.gguf", "q4_k_m"), ("theirs-q6_k.gguf", "q4_k_m"), ("theirs-mxfp4_moe.gguf", "q8_0")):
        model = llama.Model(library, export(path(source), "again.gguf", "--type", mixture))
        text = model.text(model.greedy([3840] + model.tokenize(b"The capital of France is"), 3))
        print(f"{source} as {mixture}: {text!r}", flush=True)
        check(text.startswith("[BOS]The capital of France is Paris"), f"{source} as {mixture}: {text!r}")
        model.close()


check_python_file()
check_quantised_files()
peers.finish()
