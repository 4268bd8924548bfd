#!/usr/bin/python3
"""tests/interop/gguf_logits.py PROGRAM: the same GGUF files run by llama.cpp and by mica: tiny-k2 (whose epsilons and YaRN window are those
both know) with held-out text, and two fixtures that both read alike and whose sizes blocks of 32 divide (random weights).

F32: logits within 1e-4. Files that llama.cpp has quantised: the truth is llama.cpp's own float32 run of the same weights (decoded by gguf,
written as F32), which --exact must meet within 1e-4. Beside it stands what activations of less than float32 cost each program, as KL in
nats a token (docs/engine.md has the table).

A choice of experts is not continuous: a token whose experts nearly tie takes another one under any rounding. So every file is run twice by
each program.
  With the truth's experts, in both programs, nothing is left but rounding: every token counts. The means are at most 2e-3 between the
programs and 1e-3 from mica to the truth; mica is nearer to it than llama.cpp (but for BF16, which both multiply in bf16). What the layers
would choose there differs from the truth's choice as often, and over margins as small, as the deviations of their scores explain: as normal
noise of that size would do it.
  Between the programs this is asked of the trained model. Random weights have no margins to speak of and enlarge every rounding: there
llama.cpp's activations alone cost up to 1.8e-3 with the same experts, so that of the fixtures only mica's distance from the truth is
bounded.
  With their own choice that holds of the tokens that choose alike; the others are no more than that noise makes (two programs, two noises),
and mica's mean over all types is at most llama.cpp's, as far as the types' own scatter lets that be said.
A fused file (gates and ups of the experts in one tensor, as llama.cpp's converter can write it) gives the numbers of the one it was made
of, in both programs.
Exit status 77: skipped."""
import collections
import math
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
    from gguf import quants

    import llama
    import truths

PROGRAM = os.path.abspath(sys.argv[1])
CHOICES = os.path.join(os.path.dirname(PROGRAM), "tests", "dump_choices")
TINY = os.path.join(ROOT, "models", "tiny-k2")
FIXTURES = os.path.join(ROOT, "..", "shared", "fixtures", "public")
TOKENS = 300
# Of noise, which explain another choice: among the 34,000 of all types and both programs a normal one is as large by a chance of 1 in 100.
DEVIATIONS = 5
# llama_ftype
TYPES = {"BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17,
         "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "MXFP4": 38}


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


# Of one run: logits [token][vocabulary]; by layer with experts the ids chosen [token][top_k], ascending, and what they were chosen by
# [token][experts].
Run = collections.namedtuple("Run", "logits layers ids scores")


def ours(path, ids, how, given=None):
    """By dump_choices; `given` as Run.ids."""
    feed = struct.pack("<Q", len(ids)) + np.array(ids, dtype="<i8").tobytes()
    if given is not None:
        feed += np.array(given, dtype="<u4").tobytes()
    done = subprocess.run([CHOICES, path, how, "own" if given is None else "given"], input=feed, capture_output=True)
    if done.returncode:
        sys.exit(f"failed: dump_choices {path}: {done.stderr.decode()}")
    layers, chosen, scores, at = [], [], [], 8
    for _ in range(struct.unpack_from("<Q", done.stdout)[0]):
        layer, tokens, experts, top_k = struct.unpack_from("<4Q", done.stdout, at)
        layers.append(layer)
        chosen.append(np.frombuffer(done.stdout, "<u4", tokens * top_k, at + 32).reshape(tokens, top_k))
        at += 32 + chosen[-1].nbytes
        scores.append(np.frombuffer(done.stdout, "<f4", tokens * experts, at).reshape(tokens, experts))
        at += scores[-1].nbytes
    values = np.frombuffer(done.stdout, "<f4", -1, at).reshape(len(ids), -1).astype(np.float64)
    return Run(values, layers, np.array(chosen), np.array(scores, dtype=np.float64))


def theirs(library, path, ids, top_k=0, given=None):
    model, choices = llama.Model(library, path), {}
    values = model.logits(ids, choices=choices, given=given)
    model.close()
    layers = sorted(choices)
    return Run(values, layers, np.array([np.sort(choices[layer]["argsort"][:, :top_k], axis=1) for layer in layers]),
               np.array([choices[layer]["scores"] for layer in layers], dtype=np.float64))


def at_most(expected):
    """More would be no accident: four standard deviations of a Poisson number, and two where hardly one is expected."""
    return expected + 4 * math.sqrt(expected) + 2


def partings(truth, run):
    """Of a run with the truth's experts: how many of its own choices would differ, how many the noise explains, and the largest margin of
    one of them in deviations of that noise. A margin is the last expert's that the truth takes over the best that it does not; its noise is
    what the run makes of that difference, by layer."""
    if not truth.layers:
        return 0, 0.0, 0.0
    top_k = truth.ids.shape[2]
    pair = np.argsort(-truth.scores, axis=2)[:, :, top_k - 1:top_k + 1]
    margins, seen = (-np.diff(np.take_along_axis(scores, pair, 2))[:, :, 0] for scores in (truth.scores, run.scores))
    margins = margins / np.sqrt(((seen - margins) ** 2).mean(axis=1))[:, None]
    differ = (run.ids != truth.ids).any(axis=2)
    explained = sum(math.erfc(margin / math.sqrt(2)) / 2 for margin in margins.flat)
    return int(differ.sum()), float(explained), float(margins[differ].max(initial=0))


def alike(a, b):
    """Which tokens chose the same experts in every layer."""
    return (a.ids == b.ids).all(axis=(0, 2)) if a.layers else np.ones(len(a.logits), dtype=bool)


def check_exact(name, path, ids, truth):
    """Returns how far the logits are, with the truth's experts; its own are the same but where scores are, to float32's last bits."""
    run = ours(path, ids, "exact", truth.ids if truth.layers else None)
    worst = np.abs(run.logits - truth.logits).max()
    check(worst <= 1e-4, f"{name}: logits differ by {worst}")
    if truth.layers:
        differ, _, margin = partings(truth, run)
        apart = np.abs(run.scores - truth.scores).max()
        check(apart <= 1e-5, f"{name}: router's scores differ by {apart}")
        check(margin <= DEVIATIONS, f"{name}: {differ} other choices, by up to {margin} deviations")
    return worst


def check_given(name, path, library, ids, truth, trained):
    """Both programs with the truth's experts: KL means (mica's, llama.cpp's, between them), and the partings of each."""
    if truth.layers:
        mine = ours(path, ids, "fast", truth.ids)
        other = theirs(library, path, ids, truth.ids.shape[2], dict(zip(truth.layers, truth.ids)))
    else:
        mine, other = ours(path, ids, "fast"), theirs(library, path, ids)
    kl, their_kl = divergences(truth.logits, mine.logits).mean(), divergences(truth.logits, other.logits).mean()
    between = divergences(other.logits, mine.logits).mean()
    noise = {"mica": partings(truth, mine), "llama.cpp": partings(truth, other)}
    check(between <= 2e-3 or not trained, f"{name}: KL between the programs with the same experts {between}")
    check(kl <= 1e-3, f"{name}: KL {kl} with the truth's experts")
    # bf16 by bf16 is what llama.cpp does as well, but it keeps keys and values in float32 here: twice as many roundings, twice the variance
    check(kl <= their_kl * (2 if "BF16" in name else 1), f"{name}: KL {kl} with the truth's experts, llama.cpp's {their_kl}")
    for program, (differ, expected, margin) in noise.items():
        check(differ <= at_most(expected), f"{name}: {program} would choose otherwise {differ} times, where noise explains {expected}")
        check(margin <= DEVIATIONS, f"{name}: {program} would choose otherwise over {margin} deviations")
    return (kl, their_kl, between), noise


TITLES = ("| with the truth's experts | `--exact`: logits within | KL from the truth: mica | llama.cpp | between them | "
          "would choose otherwise (explained), margins up to: mica | llama.cpp |\n" + "|---" * 7 + "|",
          "| with their own | KL from the truth: mica | llama.cpp | between them | of tokens that choose alike: mean, largest | "
          "other tokens | same argmax |\n" + "|---" * 7 + "|")
tables = ([], [])


def show_tables():
    for title, rows in zip(TITLES, tables):
        print(title, *rows, sep="\n", flush=True)
        rows.clear()


def compare(library, whole, directory, name, number, ids, trained):
    path, plain = os.path.join(directory, name + ".gguf"), os.path.join(directory, name + "-f32.gguf")
    check(llama.quantise(library, whole, path, number) == 0, f"{name}: llama.cpp does not quantise")
    rewritten(path, plain, decoded)
    mine = ours(path, ids, "fast")
    top_k = mine.ids.shape[2] if mine.layers else 0
    truth, other = theirs(library, plain, ids, top_k), theirs(library, path, ids, top_k)
    os.remove(plain)
    check(np.array_equal(logits(path, ids), mine.logits), f"{name}: dump_choices computes other logits than the program")
    worst = check_exact(name, path, ids, truth)
    given, noise = check_given(name, path, library, ids, truth, trained)
    kl, their_kl = divergences(truth.logits, mine.logits), divergences(truth.logits, other.logits)
    between = divergences(other.logits, mine.logits)
    same, both = alike(truth, mine), alike(other, mine)
    agree = float((mine.logits.argmax(axis=1) == other.logits.argmax(axis=1)).mean())
    tables[0].append(f"| {name} | {worst:.1e} | {given[0]:.1e} | {given[1]:.1e} | {given[2]:.1e} | " +
                     " | ".join(f"{differ} ({expected:.0f}), {margin:.1f}" for differ, expected, margin in noise.values()) + " |")
    tables[1].append(f"| {name} | {kl.mean():.1e} | {their_kl.mean():.1e} | {between.mean():.1e} | "
                     f"{between[both].mean():.1e}, {between[both].max():.0e} | {(~both).sum()} | {100 * agree:.0f} % |")
    check(kl[same].mean() <= 1e-3, f"{name}: KL {kl[same].mean()} of tokens that choose as the truth")
    check(between[both].mean() <= 2e-3 or not trained, f"{name}: KL between the programs {between[both].mean()} of tokens choosing alike")
    explained, in_both = noise["mica"][1], noise["mica"][1] + noise["llama.cpp"][1]
    check((~same).sum() <= at_most(explained), f"{name}: {(~same).sum()} tokens choose otherwise, where noise explains {explained}")
    check((~both).sum() <= at_most(in_both), f"{name}: {(~both).sum()} tokens choose otherwise in one program, of {in_both} explained")
    return path, kl.mean(), their_kl.mean()


def fuse(library, path, ids):
    both = path.replace(".gguf", "-fused.gguf")
    rewritten(path, both, fused)
    check(np.array_equal(logits(path, ids), logits(both, ids)), "fused: other logits")
    worst = np.abs(theirs(library, path, ids).logits - theirs(library, both, ids).logits).max()
    print(f"fused gates and ups: the same logits; llama.cpp's within {worst:.1e}", flush=True)
    check(worst <= 1e-4, f"fused: llama.cpp's logits differ by {worst}")
    os.remove(both)


def tiny(library, directory):
    with open(os.path.join(TINY, "heldout.txt"), encoding="utf-8") as file:
        ids = [int(number) for number in run("tokenize", TINY, file.read(8 * TOKENS)).replace(",", " ").split()][:TOKENS]
    whole = os.path.join(directory, "f32.gguf")
    run("export", TINY, "--format", "gguf", "--type", "f32", "-o", whole)
    worst = np.abs(logits(whole, ids, "--exact") - theirs(library, whole, ids).logits).max()
    print(f"tiny-k2, F32: {len(ids)} tokens, logits within {worst:.1e}", flush=True)
    check(worst <= 1e-4, f"F32: logits differ by {worst}")
    losses = []
    for name, number in TYPES.items():
        path, *loss = compare(library, whole, directory, name, number, ids, True)
        losses.append(loss)
        if name == "Q8_0":
            fuse(library, path, ids)
        os.remove(path)
    show_tables()
    mine, other = np.array(losses).T
    scatter = np.std(mine - other, ddof=1) / math.sqrt(len(losses))
    print(f"mean KL by activations: llama.cpp {other.mean():.1e}, mica {mine.mean():.1e}; their difference is known within {scatter:.1e}")
    check(mine.mean() <= other.mean() + 2 * scatter, f"mean KL {mine.mean()}, llama.cpp's {other.mean()}")


def fixture(library, directory, kind):
    source = os.path.join(FIXTURES, kind)
    ids = truths.load(source)["sequences"]["b"]["ids"]
    whole = os.path.join(directory, kind + ".gguf")
    run("export", source, "--format", "gguf", "--type", "f32", "-o", whole)
    for name in ("Q8_0", "Q4_0", "Q5_1", "IQ4_NL"):
        os.remove(compare(library, whole, directory, f"{kind} {name}", TYPES[name], ids, False)[0])
    os.remove(whole)


def main():
    library = llama.needed_library()
    with tempfile.TemporaryDirectory() as directory:
        tiny(library, directory)
        for kind in ("k2-thinking", "qwen3-dense"):
            if os.path.isdir(os.path.join(FIXTURES, kind)):
                fixture(library, directory, kind)
        show_tables()
    peers.finish()


main()
