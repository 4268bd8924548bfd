#!/usr/bin/python3
"""tests/interop/export_groups.py PROGRAM: experts of several types (`mica export --compat mica`): gguf (PyPI) decodes every group to the values that the expert
has in a file of one type, and llama.cpp (npm node-llama-cpp) refuses the file with a sentence. Exit status 77: skipped."""
import json
import os
import subprocess
import sys
import tempfile

import peers
from peers import ROOT

with peers.needed():
    import gguf
    import numpy as np
import llama

library = llama.needed_library()

MICA = os.path.abspath(sys.argv[1])
TINY = os.path.join(ROOT, "models", "tiny-k2")
scratch = tempfile.TemporaryDirectory()
NAME = "blk.2.ffn_up_exps.weight"


def export(name, rules, *options):
    path, config = os.path.join(scratch.name, name), os.path.join(scratch.name, "rules.json")
    json.dump({"type": "q4_k_s", "rules": rules}, open(config, "w"))
    subprocess.run([MICA, "export", TINY, "--format", "gguf", "-o", path, "--config", config, *options], check=True, stdout=subprocess.DEVNULL)
    return path


def decode(reader, name):
    tensor = next(t for t in reader.tensors if t.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


grouped = gguf.GGUFReader(export("grouped.gguf", [{"name": NAME, "experts": "1,5-6", "type": "q6_k"}, {"name": NAME, "experts": "8", "type": "q2_k"}],
                                 "--compat", "mica"))
whole = {kind: decode(gguf.GGUFReader(export(f"{kind}.gguf", [{"name": NAME, "type": kind}])), NAME) for kind in ("q4_k", "q6_k", "q2_k")}
field = grouped.fields["mica.expert_groups." + NAME]
groups = [int(field.parts[i][0]) for i in field.data]
assert groups == [1 if e in (1, 5, 6) else 2 if e == 8 else 0 for e in range(24)], groups
for group, kind in enumerate(("q4_k", "q6_k", "q2_k")):
    experts = [e for e in range(24) if groups[e] == group]
    assert np.array_equal(decode(grouped, f"{NAME}.g{group}"), whole[kind][experts]), kind
try:
    llama.Model(library, os.path.join(scratch.name, "grouped.gguf"))
    raise SystemExit("failed: llama.cpp loads a file whose experts have several types")
except ValueError as refusal:
    assert NAME in str(refusal) and "not found" in str(refusal), refusal
llama.Model(library, os.path.join(scratch.name, "q4_k.gguf")).close()  # and goes on loading what it can
print("gguf decodes the groups; llama.cpp refuses the file")
