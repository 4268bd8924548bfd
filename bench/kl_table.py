#!/usr/bin/python3
"""bench/kl_table.py [--swap] [--budget | --covariance] PROGRAM [WINDOWS [TYPE...]]: what quantising does to tiny-k2, ours beside llama-quantize's at the same type and size: KL(F32 || quantised) per
token over windows of 256 tokens of the second half of heldout.txt, computed by llama.cpp for both, without and with an importance matrix (of mica imatrix,
over the first half). Prints a Markdown table: KL in thousandths of a nat, and the ratio with its standard error over the windows (paired).
With --budget instead: each mixture with an importance matrix beside a budget of its size, with measured sensitivities and without. With --covariance: levels by
the joint search beside those by covariance, and llama-quantize's with the same importance. With --swap the halves change places: the second is measured on, the
first judges. Needs scripts/setup-peers."""
import ctypes
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "interop"))
from peers import ROOT  # noqa: E402: and goes on under their Python
import gguf  # noqa: E402
import llama  # noqa: E402
import numpy as np  # noqa: E402

SWAP = sys.argv[1:2] == ["--swap"] and bool(sys.argv.pop(1))
OTHER = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1] in ("--budget", "--covariance") else None
MICA, WINDOWS, WINDOW = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 32, 256
TINY = os.path.join(ROOT, "models", "tiny-k2")
ALL = {"q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_0": 2, "q4_1": 3, "q4_k_s": 14, "q4_k_m": 15, "iq4_nl": 25, "iq4_xs": 30,
         "mxfp4_moe": 38, "q5_0": 8, "q5_1": 9, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "q8_0": 7}
TYPES = {kind: ALL[kind] for kind in sys.argv[3:] or ALL}
library = llama.open_library()
scratch = tempfile.TemporaryDirectory()


def path(name):
    return os.path.join(scratch.name, name)


def mica(*arguments):
    subprocess.run([MICA, *arguments], check=True, stdout=subprocess.DEVNULL)


class ImatrixData(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


def load_imatrix(file):
    tensors = {t.name: np.array(t.data, np.float32) for t in gguf.GGUFReader(file).tensors}
    rows = []
    for name in sorted(n[:-len(".in_sum2")] for n in tensors if n.endswith(".in_sum2")):
        sums, counts = tensors[name + ".in_sum2"], tensors[name + ".counts"].reshape(-1, 1)
        sums = sums.reshape(len(counts), -1)
        rows.append((name.encode(), np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32).ravel()))
    return rows


def llama_quantise(source, target, number, rows):
    parameters = library.llama_model_quantize_default_params()
    parameters.put(ctypes.c_int32, 0, 2)
    parameters.put(ctypes.c_int32, 4, number)
    table = (ImatrixData * (len(rows) + 1))(*[ImatrixData(n, v.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), v.size) for n, v in rows])
    if rows:
        parameters.put(ctypes.c_void_p, 24, ctypes.addressof(table))
    if library.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)):
        raise ValueError("".join(llama.messages)[-400:])


def distributions(file, ids):
    model = llama.Model(library, file)
    rows = []
    for window in ids:
        logits = model.logits(window)[1:]
        logits -= logits.max(axis=1, keepdims=True)
        rows.append((logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32))
    model.close()
    return rows


def divergences(file, base, ids):
    """KL per window."""
    return np.array([(np.exp(p) * (p - q)).sum(axis=1, dtype=np.float64).mean() for p, q in zip(base, distributions(file, ids))])


text = open(os.path.join(TINY, "heldout.txt"), "rb").read()
half = text.index(b"\n", len(text) // 2)
calibration, judge = (text[half:], text[:half]) if SWAP else (text[:half], text[half:])
open(path("calibration.txt"), "wb").write(calibration)
mica("export", TINY, "--format", "gguf", "--type", "f32", "-o", path("f32.gguf"))
mica("imatrix", TINY, "-f", path("calibration.txt"), "--context", "256", "-o", path("imatrix.gguf"))
model = llama.Model(library, path("f32.gguf"), vocabulary_only=True)
tokens = model.tokenize(judge)
model.close()
ids = [[3840] + tokens[i * (WINDOW - 1):(i + 1) * (WINDOW - 1)] for i in range(min(WINDOWS, len(tokens) // (WINDOW - 1)))]
base, rows = distributions(path("f32.gguf"), ids), load_imatrix(path("imatrix.gguf"))
print(f"{len(ids)} windows of {WINDOW} tokens\n")


def cell(ours, theirs):
    """KL, and its ratio to another's with the paired standard error."""
    ratio = ours.mean() / theirs.mean()
    spread = np.std(ours - ratio * theirs, ddof=1) / np.sqrt(len(ids)) / theirs.mean()
    return f"{1e3 * ours.mean():.3f}", f"{ratio:.3f} ± {spread:.3f}"


def export(name, *options):
    mica("export", TINY, "--format", "gguf", "-o", path(name), "--force", *options)
    return divergences(path(name), base, ids)


if OTHER:
    mica("imatrix", TINY, "-f", path("calibration.txt"), "--context", "256", "-o", path("full.gguf"), "--covariance", "--sensitivity")
    open(path("trellis.json"), "w").write('{"scale_optimization": "trellis"}')
if OTHER == "--budget":
    print("| mixture | bytes | bytes, budget | KL | KL, budget | ratio | ratio without measured sensitivity |\n|---|---|---|---|---|---|---|", flush=True)
    for kind in TYPES:
        report = subprocess.run([MICA, "export", TINY, "--format", "gguf", "--type", kind, "--dry-run", "--json"], check=True, capture_output=True).stdout
        budget = f"{json.loads(report)['data_bytes']}B"
        plain = export("plain.gguf", "--type", kind, "--imatrix", path("imatrix.gguf"))
        bought = export("bought.gguf", "--type", kind, "--imatrix", path("full.gguf"), "--budget", budget)
        blind = export("blind.gguf", "--type", kind, "--imatrix", path("imatrix.gguf"), "--budget", budget)
        print(f"| {kind} | {os.path.getsize(path('plain.gguf'))} | {os.path.getsize(path('bought.gguf'))} | {1e3 * plain.mean():.3f} | "
              f"{' | '.join(cell(bought, plain))} | {cell(blind, plain)[1]} |", flush=True)
    sys.exit(0)
if OTHER == "--covariance":
    print("| type | bytes | llama-quantize, imatrix | ours, imatrix | ratio | ours, covariance | ratio |\n|---|---|---|---|---|---|---|", flush=True)
    for kind, number in TYPES.items():
        llama_quantise(path("f32.gguf"), path("theirs.gguf"), number, rows)
        theirs = divergences(path("theirs.gguf"), base, ids)
        joint = export("joint.gguf", "--type", kind, "--imatrix", path("imatrix.gguf"))
        trellis = export("trellis.gguf", "--type", kind, "--imatrix", path("full.gguf"), "--config", path("trellis.json"))
        print(f"| {kind} | {os.path.getsize(path('joint.gguf'))} | {1e3 * theirs.mean():.3f} | {' | '.join(cell(joint, theirs))} | "
              f"{' | '.join(cell(trellis, theirs))} |", flush=True)
    sys.exit(0)
print("| type | bytes | ours | llama-quantize | ratio | ours, imatrix | llama-quantize, imatrix | ratio |")
print("|---|---|---|---|---|---|---|---|", flush=True)
for kind, number in TYPES.items():
    cells = []
    for weighted in (False, True):
        mica("export", TINY, "--format", "gguf", "--type", kind, "-o", path("ours.gguf"), "--force",
             *(["--imatrix", path("imatrix.gguf")] if weighted else []))
        llama_quantise(path("f32.gguf"), path("theirs.gguf"), number, rows if weighted else [])
        ours, theirs = divergences(path("ours.gguf"), base, ids), divergences(path("theirs.gguf"), base, ids)
        shown, ratio = cell(ours, theirs)
        cells += [shown, f"{1e3 * theirs.mean():.3f}", ratio]
    print(f"| {kind} | {os.path.getsize(path('ours.gguf'))} | {' | '.join(cells)} |", flush=True)
