#!/usr/bin/python3
"""tests/interop/gguf_blocks.py PROGRAM: every block type decoded by mica, by gguf (PyPI) and by ggml's own library: the same bits.

Blocks of random bytes, blocks whose halves run through all 65,536 patterns, and what our quantiser writes of Gaussian weights, which gguf must
decode to something like them. Exit status 77: skipped."""
import ctypes
import glob
import os
import subprocess
import sys

import peers
from peers import PEERS

with peers.needed():
    import gguf
    import numpy as np
    from gguf import quants

QUANTISER = os.path.join(os.path.dirname(os.path.abspath(sys.argv[1])), "tests", "quantise_blocks")
HELPER = os.path.join(os.path.dirname(os.path.abspath(sys.argv[1])), "tests", "decode_blocks")
# The relative error of a rounding to the type that one would not be proud of.
ERRORS = {"Q2_K": 0.3, "Q3_K": 0.16, "Q4_0": 0.09, "Q4_1": 0.08, "Q4_K": 0.075, "IQ4_NL": 0.08, "IQ4_XS": 0.08, "MXFP4": 0.12, "Q5_0": 0.045,
          "Q5_1": 0.04, "Q5_K": 0.038, "Q6_K": 0.019, "Q8_0": 0.006}
# type: bytes of a block, elements, where its halves are, ggml's decoder
TYPES = {
    "Q4_0": (18, 32, [0], "q4_0"), "Q4_1": (20, 32, [0, 2], "q4_1"), "Q5_0": (22, 32, [0], "q5_0"), "Q5_1": (24, 32, [0, 2], "q5_1"),
    "Q8_0": (34, 32, [0], "q8_0"), "Q2_K": (84, 256, [80, 82], "q2_K"), "Q3_K": (110, 256, [108], "q3_K"),
    "Q4_K": (144, 256, [0, 2], "q4_K"), "Q5_K": (176, 256, [0, 2], "q5_K"), "Q6_K": (210, 256, [208], "q6_K"),
    "IQ4_NL": (18, 32, [0], "iq4_nl"), "IQ4_XS": (136, 256, [0], "iq4_xs"), "MXFP4": (17, 32, [], "mxfp4"),
}


def blocks_of(name, generator):
    size, _, halves, _ = TYPES[name]
    moderate, wild, every = (generator.integers(0, 256, (count, size), dtype=np.uint8) for count in (2000, 500, 65536))
    for at in halves:
        moderate[:, at + 1] &= 0xBB
        every[:, at:at + 2] = np.roll(np.arange(65536, dtype="<u2"), at).view(np.uint8).reshape(-1, 2)
    blocks = np.concatenate([moderate, wild, every[::1 if size < 100 else 7]])
    if name == "MXFP4":  # 255 is NaN for mica and for ggml's check of a file; ggml's decoder makes 2^127 of it
        blocks[blocks[:, 0] == 255, 0] = 254
    return np.ascontiguousarray(blocks)


def quantised(name, generator):
    """Gaussian rows, and the blocks that mica makes of them."""
    weights = generator.normal(scale=0.02, size=(64, 256)).astype(np.float32)
    done = subprocess.run([QUANTISER, name], input=weights.tobytes(), capture_output=True, check=True)
    return weights, np.frombuffer(done.stdout, dtype=np.uint8).reshape(-1, TYPES[name][0])


def decode_mica(name, blocks, cpu):
    environment = dict(os.environ, MICA_CPU=cpu)
    done = subprocess.run([HELPER, name], input=blocks.tobytes(), capture_output=True, env=environment, check=True)
    return np.frombuffer(done.stdout, dtype="<u4")


def load_ggml():
    found = glob.glob(os.path.join(PEERS, "node_modules", "@node-llama-cpp", "linux-x64", "bins", "linux-x64", "libggml-base.so"))
    return ctypes.CDLL(found[0]) if found else None


def bits(values):
    """As bits, every NaN the same."""
    values = np.ascontiguousarray(values, dtype=np.float32).ravel()
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


def main():
    generator = np.random.default_rng(20)
    ggml = load_ggml()
    if ggml is None:
        print("ggml's library is absent (scripts/setup-peers): compared with gguf alone")
    failures = 0
    for name, (size, elements, _, function) in TYPES.items():
        weights, written = quantised(name, generator)
        decoded = quants.dequantize(written, gguf.GGMLQuantizationType[name]).reshape(weights.shape)
        error = np.linalg.norm(decoded - weights) / np.linalg.norm(weights)
        if not error < ERRORS[name]:
            failures += 1
            print(f"failed: {name}: gguf decodes what mica wrote with an error of {error}")
        blocks = np.concatenate([blocks_of(name, generator), written])
        with np.errstate(all="ignore"):
            expected = {"gguf": bits(quants.dequantize(blocks, gguf.GGMLQuantizationType[name]))}
        if ggml is not None:
            out = np.empty(len(blocks) * elements, dtype=np.float32)
            getattr(ggml, f"dequantize_row_{function}")(ctypes.c_void_p(blocks.ctypes.data), ctypes.c_void_p(out.ctypes.data),
                                                        ctypes.c_int64(out.size))
            expected["ggml"] = bits(out)
        for cpu in ("portable", "avx2", "avx512"):
            got = decode_mica(name, blocks, cpu)
            for peer, values in expected.items():
                differs = np.flatnonzero(got != values) if got.shape == values.shape else np.array([-1])
                if differs.size:
                    failures += 1
                    at = differs[0]
                    print(f"failed: {name} under {cpu} against {peer}: {differs.size} of {values.size} values, first at {at}: "
                          f"expected {values[at]:08x}, got {got[at] if got.size else 0:08x}")
        print(f"{name}: {len(blocks)} blocks compared with {', '.join(expected)}")
    sys.exit(failures != 0)


main()
