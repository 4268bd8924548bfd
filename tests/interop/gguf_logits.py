#!/usr/bin/python3
"""tests/interop/gguf_logits.py PROGRAM: the same GGUF files run by llama.cpp and by mica: tiny-k2 (whose epsilons and YaRN window are those both know) with held-out
text, and two fixtures that both read alike and whose sizes blocks of 32 divide (random weights).

F32: logits within 1e-4. Files that llama.cpp has quantised: the truth is llama.cpp's own float32 run of the same weights (decoded by gguf, written as F32), which
--exact must meet within 1e-4. Beside it stands what activations of less than float32 cost each program, as KL from that truth in nats a token, and the KL between
the two (docs/engine.md has the table). A token whose experts flip is computed by another expert: a few such make a mean. So of models with experts mica's mean over
all types must be no more than llama.cpp's, and each type's median token no farther from the truth than llama.cpp's; of the dense one every mean is at most 1e-3.
A fused file (gates and ups of the experts in one tensor, as llama.cpp's converter can write it) gives the numbers of the one it was made of, in both programs.
Exit status 77: skipped."""
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
    from gguf import quants

    import llama

PROGRAM = os.path.abspath(sys.argv[1])
TINY = os.path.join(ROOT, "models", "tiny-k2")
FIXTURES = os.path.join(ROOT, "..", "shared", "fixtures", "public")
TOKENS = 300
# llama_ftype
TYPES = {"BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18,
         "IQ4_NL": 25, "IQ4_XS": 30, "MXFP4": 38}


def run(*words):
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: mica {' '.join(words)}: {done.stderr}")
    return done.stdout


def logits(path, ids, *options):
    with tempfile.NamedTemporaryFile(suffix=".f32") as out:
        run("logits", path, "--ids", ",".join(map(str, ids)), "-o", out.name, *options)
        return np.fromfile(out.name, dtype="<f4").reshape(len(ids), -1).astype(np.float64)


def log_softmax(values):
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def divergences(truth, other):
    """A token's, in nats."""
    truth, other = log_softmax(truth), log_softmax(other)
    return (np.exp(truth) * (truth - other)).sum(axis=1)


def rewritten(source, target, change):
    """The same file with other tensors: change(reader) gives (name, array, type or None)."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind, sub = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub)
    for name, values, kind in change(reader):
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decoded(reader):
    """Every tensor in F32."""
    for tensor in reader.tensors:
        yield tensor.name, quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32), None


def fused(reader):
    """Of each expert the gate's rows, then the up's."""
    ups = {tensor.name: tensor for tensor in reader.tensors if "ffn_up_exps" in tensor.name}
    for tensor in reader.tensors:
        if "ffn_gate_exps" in tensor.name:
            up = ups[tensor.name.replace("gate_exps", "up_exps")]
            yield tensor.name.replace("gate_exps", "gate_up_exps"), np.concatenate([tensor.data, up.data], axis=1), tensor.tensor_type
        elif "ffn_up_exps" not in tensor.name:
            yield tensor.name, tensor.data, tensor.tensor_type


def theirs(library, path, ids):
    model = llama.Model(library, path)
    values = model.logits(ids)
    model.close()
    return values


def compare(library, whole, directory, name, number, ids):
    path, plain = os.path.join(directory, name + ".gguf"), os.path.join(directory, name + "-f32.gguf")
    check(llama.quantise(library, whole, path, number) == 0, f"{name}: llama.cpp does not quantise")
    rewritten(path, plain, decoded)
    truth = theirs(library, plain, ids)
    worst = np.abs(logits(path, ids, "--exact") - truth).max()
    their_values, our_values = theirs(library, path, ids), logits(path, ids)
    ours, others, between = divergences(truth, our_values), divergences(truth, their_values), divergences(their_values, our_values)
    agree = float((our_values.argmax(axis=1) == their_values.argmax(axis=1)).mean())
    print(f"| {name} | {worst:.1e} | {ours.mean():.1e} ({np.median(ours):.0e}) | {others.mean():.1e} ({np.median(others):.0e}) | "
          f"{between.mean():.1e} ({np.median(between):.0e}) | {100 * agree:.0f} % |", flush=True)
    check(worst <= 1e-4, f"{name}: logits differ by {worst}")
    os.remove(plain)
    return path, others, ours


def fuse(library, path, ids):
    both = path.replace(".gguf", "-fused.gguf")
    rewritten(path, both, fused)
    check(np.array_equal(logits(path, ids), logits(both, ids)), "fused: other logits")
    worst = np.abs(theirs(library, path, ids) - theirs(library, both, ids)).max()
    print(f"fused gates and ups: the same logits; llama.cpp's within {worst:.1e}", flush=True)
    check(worst <= 1e-4, f"fused: llama.cpp's logits differ by {worst}")
    os.remove(both)


def tiny(library, directory):
    with open(os.path.join(TINY, "heldout.txt"), encoding="utf-8") as file:
        ids = [int(number) for number in run("tokenize", TINY, file.read(8 * TOKENS)).replace(",", " ").split()][:TOKENS]
    whole = os.path.join(directory, "f32.gguf")
    run("export", TINY, "--format", "gguf", "--type", "f32", "-o", whole)
    worst = np.abs(logits(whole, ids, "--exact") - theirs(library, whole, ids)).max()
    print(f"tiny-k2, F32: {len(ids)} tokens, logits within {worst:.1e}", flush=True)
    check(worst <= 1e-4, f"F32: logits differ by {worst}")
    print("| type | --exact: logits within | KL of mica: mean (median) | of llama.cpp | between them | same argmax |\n|---|---|---|---|---|---|")
    losses = []
    for name, number in TYPES.items():
        path, others, ours = compare(library, whole, directory, name, number, ids)
        check(name == "BF16" or np.median(ours) <= np.median(others), f"{name}: median KL {np.median(ours)}, llama.cpp's {np.median(others)}")
        losses.append((others.mean(), ours.mean()))
        if name == "Q8_0":
            fuse(library, path, ids)
        os.remove(path)
    their_loss, our_loss = np.mean(losses, axis=0)
    print(f"mean KL by activations: llama.cpp {their_loss:.1e}, mica {our_loss:.1e}")
    check(our_loss <= their_loss, f"mean KL {our_loss}, llama.cpp's {their_loss}")


def fixture(library, directory, kind):
    source = os.path.join(FIXTURES, kind)
    with open(os.path.join(source, "golden.json"), encoding="utf-8") as file:
        ids = json.load(file)["sequences"]["b"]["ids"]
    whole = os.path.join(directory, kind + ".gguf")
    run("export", source, "--format", "gguf", "--type", "f32", "-o", whole)
    for name in ("Q8_0", "Q4_0", "Q5_1", "IQ4_NL"):
        path, others, ours = compare(library, whole, directory, f"{kind} {name}", TYPES[name], ids)
        check(np.median(ours) <= np.median(others), f"{kind} {name}: median KL {np.median(ours)}, llama.cpp's {np.median(others)}")
        check("dense" not in kind or ours.mean() <= 1e-3, f"{kind} {name}: KL {ours.mean()}")
        os.remove(path)
    os.remove(whole)


def main():
    library = llama.needed_library()
    with tempfile.TemporaryDirectory() as directory:
        tiny(library, directory)
        for kind in ("k2-thinking", "qwen3-dense"):
            if os.path.isdir(os.path.join(FIXTURES, kind)):
                fixture(library, directory, kind)
    sys.exit(peers.failures != 0)


main()
