#!/usr/bin/python3
"""bench/bench_export.py [--data DIR] [--keep]: `mica export --format gguf` of a layer of Kimi-K2's dimensions (32 experts, fp8, 1.6 GB): MB of weights read
per second and core (reading, decoding, quantising and writing: seconds of the compute threads), wall time, waiting for input, memory; then the dry
run's word on the whole of Kimi-K2 (sparse shards of its real size). Build first (scripts/build)."""
import argparse
import json
import os
import resource
import shutil
import subprocess
import tempfile

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))
MICA, MAKE = os.path.join(ROOT, "build", "mica"), os.path.join(ROOT, "build", "bench", "make_checkpoint")
options = argparse.ArgumentParser()
options.add_argument("--data", help="where the checkpoint and the results go (default: a temporary directory)")
options.add_argument("--keep", action="store_true")
options.add_argument("--whole", action="store_true", help="also the dry run on the whole of Kimi-K2")
options = options.parse_args()
data = options.data or tempfile.mkdtemp()
os.makedirs(data, exist_ok=True)
checkpoint = os.path.join(data, "k2-layer")
if not os.path.exists(os.path.join(checkpoint, "config.json")):
    subprocess.run([MAKE, checkpoint], check=True)


def export(*arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([MICA, "export", checkpoint, "--format", "gguf", "--json", *arguments], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    report["user_seconds"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    return report


print(f"load {os.getloadavg()[0]:.1f}\n")
print("| type | effort | MB/s read per core | by user time | wall s | waiting % | memory MB |\n|---|---|---|---|---|---|---|")
for kind, effort in (("q4_k_m", "fast"), ("q4_k_m", "default"), ("q2_k", "default"), ("q6_k", "default"), ("iq4_xs", "default"), ("q8_0", "default"),
                     ("bf16", "default")):
    target = os.path.join(data, "out.gguf")
    report = export("--type", kind, "--effort", effort, "-o", target, "--force")
    print(f"| {kind} | {effort} | {report['bytes_read'] / 1e6 / report['work_seconds']:.0f} | {report['bytes_read'] / 1e6 / report['user_seconds']:.0f} | "
          f"{report['seconds']:.1f} | {100 * report['starved_seconds'] / report['seconds'] / report['threads']:.0f} | "
          f"{report['memory_peak_bytes'] / 1e6:.0f} |", flush=True)
    os.remove(target)
if options.whole:
    checkpoint = os.path.join(data, "k2")
    if not os.path.exists(os.path.join(checkpoint, "config.json")):
        subprocess.run([MAKE, "--layers", "60", "--dense", "--experts", "384", "--vocabulary", "163840", "--real-experts", "2", checkpoint], check=True)
    report = export("--type", "q4_k_m", "--dry-run")
    print(f"\nwhole Kimi-K2 to q4_k_m: {report['parameters'] / 1e12:.3f} T parameters, {report['data_bytes'] / 1e9:.0f} GB, "
          f"{report['estimated_seconds'] / 3600:.2f} hours of {report['threads']} threads, memory {report['memory_peak_bytes'] / 1e6:.0f} MB")
if not options.keep:
    shutil.rmtree(data)
