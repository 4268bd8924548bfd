#!/usr/bin/python3
"""tests/interop/export_back.py PROGRAM: GGUF files as checkpoints again (`mica export FILE.gguf --format safetensors`), judged by safetensors and gguf (PyPI),
by the fixtures' decoded truths and by the float64 logits; files of llama-quantize (llama.cpp) as well; and Kimi's vocabulary through `mica export` and back:
llama.cpp and tokenizers (PyPI) against tiktoken. Exit status 77: skipped."""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import peers
from peers import ROOT, check
with peers.needed():
    import gguf
    import numpy as np
    import tokenizers
    from safetensors import deserialize
    import tiny
    from tokenizer_peers import tiktoken_of
import llama
import texts
import truths

MICA = os.path.abspath(sys.argv[1])
TINY = tiny.TINY
FIXTURES = os.path.join(ROOT, "..", "shared", "fixtures", "public")
scratch = tempfile.TemporaryDirectory()
library = llama.open_library()


def path(name):
    return os.path.join(scratch.name, name)


def run(*arguments):
    done = subprocess.run([MICA, *arguments], capture_output=True, text=True)
    check(done.returncode == 0, f"mica {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def to_gguf(checkpoint, name, *options):
    run("export", checkpoint, "--format", "gguf", "-o", path(name), "--force", *options)
    return path(name)


def back(file, name, *options):
    run("export", file, "--format", "safetensors", "-o", path(name), "--force", *options)
    return path(name)


def floats(tensor):
    data, shape = tensor["data"], tensor["shape"]
    if tensor["dtype"] == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[tensor["dtype"]]).reshape(shape).astype(np.float32)


def load(directory):
    """As the safetensors library reads it."""
    tensors = {}
    for name in sorted(f for f in os.listdir(directory) if f.endswith(".safetensors")):
        tensors.update(dict(deserialize(open(os.path.join(directory, name), "rb").read())))
    return tensors


def check_fixture(kind):
    """Every decoded weight of the fixture under its own name (a part of a larger model has none of the vision tower, and no prefix)."""
    directory = os.path.join(FIXTURES, kind)
    if not os.path.isdir(directory):
        print(f"skipped: {kind} (no ../shared)")
        return
    golden = truths.load(directory)
    file = split_of(directory, kind) if kind == "kimi-vl" else to_gguf(directory, f"{kind}.gguf", "--type", "f32")
    tensors = load(back(file, kind))
    compared = 0
    for name, record in golden["decoded"].items():
        short = name[len(golden["prefix"]):] if name.startswith(golden["prefix"]) else name
        if not (short.startswith("model.") or short.startswith("lm_head")):
            continue
        truth = truths.raw(directory, record).astype(np.float32)
        if short not in tensors:
            check(short.startswith(f"model.layers.{golden_layers(directory)}") or short == "lm_head.weight", f"{kind}: {short}: not there")
            continue
        compared += 1
        check(np.array_equal(floats(tensors[short]), truth.reshape(tensors[short]["shape"])), f"{kind}: {short}: values differ")
    print(f"{kind}: {compared} weights compared", flush=True)
    check(compared > 3, f"{kind}: only {compared} weights compared")
    check_config(kind, directory)
    check_logits(kind, path(kind), directory, golden)


def split_of(directory, kind):
    run("export", directory, "--format", "gguf", "-o", path(f"{kind}.gguf"), "--type", "f32", "--split-size", "1MB")
    files = sorted(f for f in os.listdir(scratch.name) if f.startswith(f"{kind}-0"))
    check(len(files) > 1, f"{kind}: expected several files, got {files}")
    return path(files[0])


def golden_layers(directory):
    config = json.load(open(os.path.join(directory, "config.json")))
    return config.get("text_config", config)["num_hidden_layers"]


UNKNOWN = {"architectures", "model_type", "torch_dtype", "transformers_version", "use_cache", "quantization_config", "auto_map", "num_nextn_predict_layers",
           "pretraining_tp", "initializer_range", "ep_size", "aux_loss_alpha", "seq_aux", "attention_dropout", "rope_scaling", "pad_token_id", "dtype"}


def check_config(kind, directory):
    """Every key that both have says the same."""
    theirs, ours = json.load(open(os.path.join(directory, "config.json"))), json.load(open(os.path.join(path(kind), "config.json")))
    theirs = {**theirs, **theirs.get("text_config", {})}
    for key in set(theirs) & set(ours) - UNKNOWN:
        check(theirs[key] == ours[key], f"{kind}: config.json: {key}: {theirs[key]}, ours {ours[key]}")
    if theirs.get("rope_scaling"):
        for key in set(theirs["rope_scaling"]) & set(ours["rope_scaling"]):
            check(theirs["rope_scaling"][key] == ours["rope_scaling"][key], f"{kind}: config.json: rope_scaling.{key}")
    left_out = {key for key in set(theirs) - set(ours) - UNKNOWN if not isinstance(theirs[key], (dict, list))}
    print(f"{kind}: config.json: {len(set(theirs) & set(ours))} keys alike, left out: {', '.join(sorted(left_out)) or 'none'}")


def check_logits(kind, directory, fixture, golden):
    record = golden["sequences"]["a" if "a" in golden["sequences"] else "fact"]
    truth = truths.raw(fixture, record["logits"])
    run("logits", directory, "--ids", ",".join(map(str, record["ids"])), "-o", path("logits.npy"), "--exact")
    worst = np.abs(np.load(path("logits.npy")).astype(np.float64) - truth).max()
    print(f"{kind}: logits of what came back within {worst:.1e} of the float64 truth", flush=True)
    check(worst < 1e-3, f"{kind}: logits differ by {worst}")


def check_tiny():
    golden = os.path.join(TINY, "golden")
    directory = back(to_gguf(TINY, "tiny.gguf", "--type", "f32"), "tiny")
    check_logits("tiny-k2", directory, golden, truths.load(golden))
    logits = []
    for where in (TINY, path("tiny.gguf"), directory):
        run("logits", where, "-p", "The capital of France is", "-o", path("a.npy"), "--exact")
        logits.append(np.load(path("a.npy")))
    for other in logits[:2]:  # fp8 and one tensor for keys and values, float32 and two: summed otherwise
        check(np.abs(other - logits[2]).max() < 2e-5, f"tiny-k2: logits of what came back differ by {np.abs(other - logits[2]).max():.1e}")
    if library is None:
        print("without llama.cpp: node-llama-cpp is not there")
        return
    for mixture, number in (("q4_k_m", 15), ("iq4_xs", 30), ("q2_k", 10)):
        theirs = path(f"theirs-{mixture}.gguf")
        check(llama.quantise(library, path("tiny.gguf"), theirs, number) == 0, f"llama-quantize {mixture}")
        check_their_blocks(theirs, load(back(theirs, f"theirs-{mixture}", "--dtype", "f32")), mixture)


def check_their_blocks(file, tensors, what):
    """gguf's own decoding of llama-quantize's blocks, name by name."""
    config = json.load(open(os.path.join(TINY, "config.json")))
    compared = 0
    for tensor in gguf.GGUFReader(file).tensors:
        values = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        parts = tensor.name.split(".")
        if tensor.name in ("token_embd.weight", "output.weight"):
            ours = floats(tensors["model.embed_tokens.weight" if parts[0] == "token_embd" else "lm_head.weight"])
        elif parts[0] == "blk" and parts[2].endswith("_exps"):
            kind = parts[2].split("_")[1]
            ours = np.stack([floats(tensors[f"model.layers.{parts[1]}.mlp.experts.{e}.{kind}_proj.weight"]) for e in range(config["n_routed_experts"])])
        elif parts[0] == "blk" and parts[2] in ("attn_k_b", "attn_v_b"):
            whole = floats(tensors[f"model.layers.{parts[1]}.self_attn.kv_b_proj.weight"]).reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
            nope = config["qk_nope_head_dim"]
            ours = whole[:, :nope].transpose(0, 2, 1) if parts[2] == "attn_k_b" else whole[:, nope:]
        else:
            continue
        compared += 1
        check(np.array_equal(ours, values.reshape(ours.shape)), f"{what}: {tensor.name}: values differ")
    print(f"llama-quantize's {what}: {compared} tensors decoded as gguf decodes them", flush=True)
    check(compared > 20, f"{what}: only {compared} tensors compared")


def check_vocabulary(source, what, seed):
    """A checkpoint with this vocabulary as GGUF, in which llama.cpp must find tiktoken's ids; and its tokenizer.json, in which tokenizers must."""
    peer, generator = tiktoken_of(source), texts.generator(seed)
    whole, wild = texts.plain(generator, 1000000), [texts.text(generator, generator.randrange(1, 200)) for _ in range(2000)]
    expected = peer.encode_ordinary(whole)
    if library is not None:
        model = llama.Model(library, path(f"{what}.gguf"), vocabulary_only=True)
        check(model.tokens == peer.n_vocab, f"{what}: {model.tokens} tokens, expected {peer.n_vocab}")
        ids = model.tokenize(whole.encode())
        check(ids == expected, f"{what}: llama.cpp's ids differ from tiktoken's over {len(whole.encode())} bytes")
        print(f"{what}: llama.cpp: {len(ids)} ids of {len(whole.encode()) / 1e6:.2f} MB as tiktoken has them", flush=True)
        model.close()
    files = os.path.join(back(path(f"{what}.gguf"), what), "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(files)
    check(theirs.encode(whole, add_special_tokens=False).ids == expected, f"{what}: tokenizers' ids differ over {len(whole.encode())} bytes")
    other = sum(theirs.encode(text, add_special_tokens=False).ids != peer.encode(text, allowed_special="all") for text in wild)
    check(other == 0, f"{what}: tokenizers' ids differ for {other} of {len(wild)} texts")
    check(theirs.decode(expected, skip_special_tokens=False) == whole, f"{what}: tokenizers does not decode to the text")
    settings = json.load(open(os.path.join(path(what), "tokenizer_config.json")))
    for key, token in json.load(open(os.path.join(source, "tokenizer_config.json"))).items():
        if key in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
            check(settings.get(key) == (token["content"] if isinstance(token, dict) else token), f"{what}: tokenizer_config.json: {key}: {settings.get(key)}")
    print(f"{what}: tokenizers: the same, and {len(wild)} texts of all scripts", flush=True)


def with_vocabulary(real):
    """tiny-k2 with Kimi's vocabulary."""
    kimi = json.load(open(os.path.join(real, "kimi-k2-config.json")))
    tiny.with_vocabulary(path("kimi"), **{key: kimi[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")})
    for file in ("tiktoken.model", "tokenizer_config.json"):
        shutil.copy(os.path.join(real, file), path("kimi"))
    return path("kimi")


check_tiny()
for kind in ("v3-groups", "v3-groups-ue8m0", "kimi-vl", "k2-thinking", "k25", "qwen3-dense", "llama-dense"):
    check_fixture(kind)
check_vocabulary(TINY, "tiny", 1)
real = os.path.join(ROOT, "..", "shared", "data", "kimi-k2")
if os.path.isdir(real):
    to_gguf(with_vocabulary(real), "real.gguf", "--type", "q8_0")
    check_vocabulary(real, "real", 2)
else:
    print(f"without the real vocabulary: {real} is not there")
peers.finish()
