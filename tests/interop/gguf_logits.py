#!/usr/bin/python3
"""tests/interop/gguf_logits.py PROGRAM: the same GGUF files run by llama.cpp and by mica, on tiny-k2 (whose epsilons and YaRN window are those
both know) and a text of its own kind.

F32: logits within 1e-4. Files that llama.cpp has quantised: the truth is llama.cpp's own float32 run of the same weights (decoded by gguf,
written as F32), which --exact must meet within 1e-4. Beside it stands what activations of int8 cost each program, as KL from that truth: a
flipped expert makes single figures chaotic, but over all types mica's must be no more than llama.cpp's. Exit status 77: skipped."""
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
    from gguf import quants

    import llama
except ImportError as missing:
    print(f"skipped: {missing} (scripts/setup-peers)")
    sys.exit(77)

PROGRAM = os.path.abspath(sys.argv[1])
TINY = os.path.join(ROOT, "models", "tiny-k2")
TEXT = ("The capital of France is Paris. The sun rises in the east and sets in the west. Water boils at one hundred degrees. "
        "A triangle has three sides, and a square has four of them.")
# llama_ftype
TYPES = {"BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18,
         "IQ4_NL": 25, "IQ4_XS": 30, "MXFP4": 38}
failures = 0


def check(holds, what):
    global failures
    if not holds:
        print(f"failed: {what}")
        failures += 1


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


def divergence(truth, other):
    truth, other = log_softmax(truth), log_softmax(other)
    return float((np.exp(truth) * (truth - other)).sum(axis=1).mean())


def decoded(source, target):
    """The same file with every tensor in F32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind, sub = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs(library, path, ids):
    model = llama.Model(library, path)
    values = model.logits(ids)
    model.close()
    return values


def compare(library, whole, directory, name, number, ids):
    path, plain = os.path.join(directory, name + ".gguf"), os.path.join(directory, name + "-f32.gguf")
    check(llama.quantise(library, whole, path, number) == 0, f"{name}: llama.cpp does not quantise")
    decoded(path, plain)
    truth = theirs(library, plain, ids)
    worst = np.abs(logits(path, ids, "--exact") - truth).max()
    their_loss, our_loss = divergence(truth, theirs(library, path, ids)), divergence(truth, logits(path, ids))
    print(f"{name}: --exact within {worst:.1e}; KL by activations: llama.cpp {their_loss:.1e}, mica {our_loss:.1e}", flush=True)
    check(worst <= 1e-4, f"{name}: logits differ by {worst}")
    os.remove(path)
    os.remove(plain)
    return their_loss, our_loss


def main():
    library = llama.open_library(ROOT)
    if library is None:
        print("skipped: llama.cpp's library is absent (scripts/setup-peers)")
        sys.exit(77)
    ids = [int(number) for number in run("tokenize", TINY, TEXT).replace(",", " ").split()]
    with tempfile.TemporaryDirectory() as directory:
        whole = os.path.join(directory, "f32.gguf")
        run("export", TINY, "--format", "gguf", "--type", "f32", "-o", whole)
        worst = np.abs(logits(whole, ids, "--exact") - theirs(library, whole, ids)).max()
        print(f"F32: {len(ids)} tokens, logits within {worst:.1e}", flush=True)
        check(worst <= 1e-4, f"F32: logits differ by {worst}")
        losses = [compare(library, whole, directory, name, number, ids) for name, number in TYPES.items()]
        their_loss, our_loss = np.mean(losses, axis=0)
        print(f"mean KL by activations: llama.cpp {their_loss:.1e}, mica {our_loss:.1e}")
        check(our_loss <= their_loss, f"mean KL {our_loss}, llama.cpp's {their_loss}")
    sys.exit(failures != 0)


main()
