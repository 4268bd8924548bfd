#!/usr/bin/python3
"""bench/compare_tokenizers.py [CHECKPOINT]: MB/s of encoding, ours (bench_tokenize) and tiktoken's on the same texts in one run, one thread each, by processor time,
best of 5, in turns. CHECKPOINT has a tiktoken.model; ../shared/data/kimi-k2 when left out. Needs scripts/setup-peers."""
import glob
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "interop"))
from peers import ROOT  # noqa: E402: and goes on under their Python
import texts  # noqa: E402
import tokenizer_peers  # noqa: E402

CHECKPOINT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "..", "shared", "data", "kimi-k2")
BENCH = os.path.join(ROOT, "build", "bench", "bench_tokenize")


def corpora():
    """Name and text. English and code are real, the others made."""
    generator = texts.generator(5)
    yield "English", open(os.path.join(ROOT, "models", "tiny-k2", "heldout.txt"), encoding="utf-8").read() * 16
    code = sorted(glob.glob(os.path.join(sysconfig.get_paths()["stdlib"], "*.py")))
    yield "Python", "".join(open(path, encoding="utf-8").read() for path in code)[:2000000]
    yield "many scripts, code, emoji", texts.plain(generator, 1500000)
    yield "every character of Unicode, mixed", texts.text(generator, 1000000)
    yield "Chinese characters, random", "".join(chr(generator.randrange(0x4E00, 0x9FA5)) for _ in range(500000))
    yield "one letter, without a cut", "a" * 1000000


def theirs(peer, text):
    start = time.thread_time()
    peer.encode_ordinary(text)
    return time.thread_time() - start


def main():
    start = time.thread_time()
    peer = tokenizer_peers.tiktoken_of(CHECKPOINT)
    opened = (time.thread_time() - start) * 1e3
    print("| text | MB | bytes an id | mica MB/s | tiktoken MB/s | ratio |\n|---|---|---|---|---|---|")
    ratios, ours_open = [], 0
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "text")
        for name, text in corpora():
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            size, ours, peers = os.path.getsize(path) / 1e6, 0, 1e9
            for _ in range(5):
                printed = subprocess.run([BENCH, "--rounds", "1", CHECKPOINT, path], capture_output=True, text=True, check=True).stdout
                found = re.search(r"([\d.]+) bytes an id, encode ([\d.]+)", printed)
                ours = max(ours, float(found[2]))
                ours_open = max(ours_open, 1 / float(re.search(r"open ([\d.]+)", printed)[1]))
                peers = min(peers, theirs(peer, text))
            ratios.append(ours / (size / peers))
            print(f"| {name} | {size:.2f} | {found[1]} | {ours:.1f} | {size / peers:.1f} | {ratios[-1]:.1f} |")
    print(f"\nopening: {1 / ours_open:.0f} ms, tiktoken {opened:.0f} ms (with Python's reading of the file)")


main()
