#!/usr/bin/python3
"""bench/bench_export.py [--data DIR] [--keep] [--types A,B] [--rounds N]: `mica export --format gguf` of a layer of Kimi-K2's dimensions (32 experts, fp8, 1.6 GB): MB of
weights read per second of processor time (reading, decoding, quantising and writing: user and system), of user time alone, wall time beside that of a peer
which only reads and writes as much, waiting for input, memory (medians of the rounds); then the dry run's word on the whole of Kimi-K2 (sparse shards of its real size). Build first
(scripts/build). With --data on a memory file system there is no disk in it."""
import argparse
import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))
MICA, MAKE = os.path.join(ROOT, "build", "mica"), os.path.join(ROOT, "build", "bench", "make_checkpoint")
PIECE = 8 << 20  # bytes: what an export reads at once
ROWS = ("q4_k_m:fast", "q4_k_s:fast", "q4_k_m:default", "q4_k_s:default", "q2_k:default", "q6_k:default", "iq4_xs:default", "q8_0:default", "bf16:default")
options = argparse.ArgumentParser()
options.add_argument("--data", help="where the checkpoint and the results go (default: a temporary directory)")
options.add_argument("--keep", action="store_true")
options.add_argument("--types", default=",".join(ROWS), help="type:effort, several with commas")
options.add_argument("--rounds", type=int, default=3)
options.add_argument("--whole", action="store_true", help="also the dry run on the whole of Kimi-K2")
options = options.parse_args()
data = options.data or tempfile.mkdtemp()
os.makedirs(data, exist_ok=True)
checkpoint = os.path.join(data, "k2-layer")
if not os.path.exists(os.path.join(checkpoint, "config.json")):
    subprocess.run([MAKE, checkpoint], check=True)


def export(*arguments):
    """The report, with the processor's seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([MICA, "export", checkpoint, "--format", "gguf", "--json", *arguments], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    report["user_seconds"] = after.ru_utime - before.ru_utime
    report["processor_seconds"] = report["user_seconds"] + after.ru_stime - before.ru_stime
    return report


def open_direct(path):
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a memory file system may know nothing of it
        return os.open(path, os.O_RDONLY)


def copy_alone(target, written):
    """Seconds in which two threads read the checkpoint past the page cache, write `written` bytes in proportion, and sync them: the disk's part alone."""
    shards = [os.path.join(checkpoint, name) for name in sorted(os.listdir(checkpoint)) if name.endswith(".safetensors")]
    pieces = [(shard, offset) for shard in shards for offset in range(0, os.path.getsize(shard), PIECE)]
    share = written // len(pieces)
    out = os.open(target, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    files = {shard: open_direct(shard) for shard in shards}

    def work(first):
        buffer = mmap.mmap(-1, PIECE)  # aligned
        random = memoryview(os.urandom(1 << 16) * (share // (1 << 16) + 1))[:share]
        for number in range(first, len(pieces), 2):
            shard, offset = pieces[number]
            os.preadv(files[shard], [buffer], offset)
            os.pwrite(out, random, number * share)

    begin = time.monotonic()
    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fsync(out)
    seconds = time.monotonic() - begin
    for file in (out, *files.values()):
        os.close(file)
    return seconds


print(f"load {os.getloadavg()[0]:.1f}\n")
print("| type | effort | MB/s read per core | of user time | wall s | reading and writing alone, s | waiting % | memory MB |\n|---|---|---|---|---|---|---|---|")
for kind, effort in (row.split(":") for row in options.types.split(",")):
    target = os.path.join(data, "out.gguf")
    rounds = []
    for _ in range(options.rounds):
        report = export("--type", kind, "--effort", effort, "-o", target, "--force")
        megabytes = report["bytes_read"] / 1e6
        rounds.append((megabytes / report["processor_seconds"], megabytes / report["user_seconds"], report["seconds"], copy_alone(target, os.path.getsize(target)),
                       100 * report["starved_seconds"] / report["seconds"] / report["threads"], report["memory_peak_bytes"] / 1e6))
        os.remove(target)
    cpu, user, wall, alone, waiting, memory = (statistics.median(column) for column in zip(*rounds))
    print(f"| {kind} | {effort} | {cpu:.0f} | {user:.0f} | {wall:.1f} | {alone:.1f} | {waiting:.0f} | {memory:.0f} |", flush=True)
if options.whole:
    checkpoint = os.path.join(data, "k2")
    if not os.path.exists(os.path.join(checkpoint, "config.json")):
        subprocess.run([MAKE, "--layers", "60", "--dense", "--experts", "384", "--vocabulary", "163840", "--real-experts", "2", checkpoint], check=True)
    report = export("--type", "q4_k_m", "--dry-run")
    print(f"\nwhole Kimi-K2 to q4_k_m: {report['parameters'] / 1e12:.3f} T parameters, {report['data_bytes'] / 1e9:.0f} GB, "
          f"{report['estimated_seconds'] / 3600:.2f} hours of {report['threads']} threads, memory {report['memory_peak_bytes'] / 1e6:.0f} MB")
if not options.keep:
    shutil.rmtree(data)
