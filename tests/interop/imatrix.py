#!/usr/bin/python3
"""tests/interop/imatrix.py PROGRAM: importance matrices both ways. Ours (`mica imatrix`) drives llama.cpp's quantiser (llama_model_quantize of npm node-llama-cpp;
llama-quantize itself where LLAMA_QUANTIZE names it), theirs, in both formats of llama-imatrix, drive ours; what is driven quantises the columns that count
better; experts that were never routed to are counted. Exit status 77: skipped."""
import json
import os
import struct
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
EXPERTS = json.load(open(os.path.join(TINY, "config.json")))["n_routed_experts"]
scratch = tempfile.TemporaryDirectory()


def path(name):
    return os.path.join(scratch.name, name)


def run(*arguments):
    done = subprocess.run([MICA, *arguments], capture_output=True, text=True)
    check(done.returncode == 0, f"mica {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def load(file):
    """{tensor: (sums [matrices][columns], counts [matrices])}, as llama.cpp's loader takes them."""
    reader = gguf.GGUFReader(file)
    for key in ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        check(key in reader.fields, f"{file}: {key} is not there, which llama-quantize asks for")
    check(reader.fields["general.type"].contents() == "imatrix", "general.type")
    tensors = {t.name: np.array(t.data, np.float32) for t in reader.tensors}
    entries = {}
    for name in (n[:-len(".in_sum2")] for n in tensors if n.endswith(".in_sum2")):
        counts = tensors[name + ".counts"].ravel()
        entries[name] = (tensors[name + ".in_sum2"].reshape(len(counts), -1), counts)
    return entries


def means(entry):
    sums, counts = entry
    return np.where(counts[:, None] > 0, sums / np.maximum(counts[:, None], 1), 1).astype(np.float32)


def weighted_error(file, truths, entries):
    """Squared error, weighted, over that of the truth, tensor by tensor: the mean of their logarithms."""
    logs = []
    for tensor in gguf.GGUFReader(file).tensors:
        entry = entries.get(tensor.name)
        if entry is None or tensor.tensor_type.name == "F32":
            continue
        values = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type).astype(np.float64)
        truth = truths[tensor.name].astype(np.float64)
        weight = means(entry).astype(np.float64).reshape(truth.shape[0] if truth.ndim == 3 else 1, 1, -1)
        shape = truth.shape if truth.ndim == 3 else (1, *truth.shape)
        error = (weight * (values.reshape(shape) - truth.reshape(shape)) ** 2).sum() / (weight * truth.reshape(shape) ** 2).sum()
        logs.append(np.log(error))
    return float(np.mean(logs)), len(logs)


def check_ours_drives_theirs(entries, truths):
    rows = [(name, np.ascontiguousarray(means(entry).ravel())) for name, entry in sorted(entries.items())]
    for mixture, number in (("q4_k_m", 15), ("q2_k", 10), ("iq4_xs", 30), ("q2_k_s", 21)):
        plain, driven = path("plain.gguf"), path(f"driven-{mixture}.gguf")
        check(llama.quantise(library, path("f32.gguf"), driven, number, rows) == 0, f"llama.cpp {mixture}: {''.join(llama.messages)[-300:]}")
        complaints = [m for m in llama.messages if "imatrix" in m or "did not find" in m or "size" in m]
        check(not complaints, f"llama.cpp {mixture} complains: {complaints[:2]}")
        with_it, count = weighted_error(driven, truths, entries)
        if mixture == "q2_k_s":  # llama-quantize does not do it without
            continue
        check(llama.quantise(library, path("f32.gguf"), plain, number) == 0, f"llama.cpp {mixture} without")
        without, _ = weighted_error(plain, truths, entries)
        print(f"ours drives llama.cpp's {mixture}: weighted error {np.exp(with_it - without):.3f} of that without, {count} tensors", flush=True)
        check(with_it < without, f"llama.cpp {mixture}: error with our matrix {with_it}, without {without}")
    tool = os.environ.get("LLAMA_QUANTIZE")
    if tool:
        done = subprocess.run([tool, "--imatrix", path("ours.gguf"), path("f32.gguf"), path("tool.gguf"), "q4_k_m"], capture_output=True, text=True)
        check(done.returncode == 0 and open(path("tool.gguf"), "rb").read()[-1000:] == open(path("driven-q4_k_m.gguf"), "rb").read()[-1000:],
              f"llama-quantize --imatrix: {done.returncode}: {done.stderr[-400:]}")
        print(f"llama-quantize took it: {[line.strip() for line in done.stderr.splitlines() + done.stdout.splitlines() if 'importance matrix' in line][:2]}")


def write_gguf(file, entries):
    """As llama-imatrix does."""
    writer = gguf.GGUFWriter(file, "imatrix")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in sorted(entries.items()):
        writer.add_tensor(name + ".in_sum2", sums.astype(np.float32))
        writer.add_tensor(name + ".counts", counts.astype(np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_dat(file, entries, calls):
    """As llama-imatrix's --output-format dat does: means times the number of calls; 1 where an expert saw nothing."""
    with open(file, "wb") as out:
        out.write(struct.pack("<i", len(entries)))
        for name, entry in sorted(entries.items()):
            values = (means(entry) * calls).astype("<f4").ravel()
            out.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size) + values.tobytes())
        out.write(struct.pack("<i", calls) + struct.pack("<i", 5) + b"a.txt")


def check_theirs_drives_ours(entries, truths):
    never = {}
    rng = np.random.default_rng(1)
    changed = {}
    for name, (sums, counts) in entries.items():
        sums, counts = sums.copy(), counts.copy()
        if name.endswith("_exps.weight"):  # three experts that were never routed to
            gone = rng.choice(EXPERTS, 3, replace=False)
            sums[gone], counts[gone] = 0, 0
            never[name] = 3
        changed[name] = (sums, counts)
    write_gguf(path("theirs.gguf"), changed)
    write_dat(path("theirs.dat"), changed, 4)
    base = ["export", TINY, "--format", "gguf", "--type", "q3_k_m", "--force", "--json"]
    run(*base, "-o", path("plain.gguf"))
    report = json.loads(run(*base, "--imatrix", path("theirs.gguf"), "-o", path("a.gguf")))
    run(*base, "--imatrix", path("theirs.dat"), "-o", path("b.gguf"))
    check(report["experts_never_routed"] == sum(never.values()), f"never routed: {report['experts_never_routed']}, expected {sum(never.values())}")
    covered = sum(t["importance"] for t in report["tensors"])
    check(covered >= len(changed) - 2, f"importance for {covered} tensors of {len(changed)} entries")
    text = run("export", TINY, "--format", "gguf", "--type", "q3_k_m", "--force", "--imatrix", path("theirs.gguf"), "-o", path("a.gguf"))
    print("\n".join(line.strip() for line in text.splitlines() if "imatrix" in line))
    check(f"{sum(never.values())} of" in text and "never routed to" in text, "the report does not tell the experts never routed to")
    plain, gguf_error, dat_error = (weighted_error(path(name), truths, changed)[0] for name in ("plain.gguf", "a.gguf", "b.gguf"))
    print(f"theirs drives ours: weighted error {np.exp(gguf_error - plain):.3f} of that without (GGUF), {np.exp(dat_error - plain):.3f} (.dat)", flush=True)
    check(gguf_error < plain and dat_error < plain, f"q3_k_m: errors {gguf_error}, {dat_error}, without {plain}")
    check(abs(gguf_error - dat_error) < 1e-3, f"the two formats of one matrix: {gguf_error}, {dat_error}")


text = open(os.path.join(TINY, "heldout.txt"), "rb").read()
open(path("calibration.txt"), "wb").write(text[:20000])
run("export", TINY, "--format", "gguf", "--type", "f32", "-o", path("f32.gguf"))
run("imatrix", TINY, "-f", path("calibration.txt"), "--context", "256", "-o", path("ours.gguf"))
truths = {t.name: np.asarray(t.data) for t in gguf.GGUFReader(path("f32.gguf")).tensors}
entries = load(path("ours.gguf"))
check(all(counts.sum() > 0 for _, counts in entries.values()) and len(entries) > 40, f"{len(entries)} entries")
check_ours_drives_theirs(entries, truths)
check_theirs_drives_ours(entries, truths)
peers.finish()
