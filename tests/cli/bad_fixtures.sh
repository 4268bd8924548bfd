#!/bin/bash
# tests/cli/bad_fixtures.sh PROGRAM: the damaged checkpoints of the fixtures: `inspect` refuses what shows at opening, `verify` that and what
# shows in the data too; the message names what cases.json says it must; exit status 3, never a signal. What is valid passes.
set -u
program=$(realpath "$1")
bad=$(dirname "$0")/../../../shared/fixtures/public/bad
if [ ! -f "$bad/cases.json" ]; then
    echo "skipped: ../shared/fixtures is not there"
    exit 77
fi
export LC_ALL=C
exec python3 - "$program" "$(realpath "$bad")" <<'END'
import json, os, subprocess, sys

program, bad = sys.argv[1:]
cases = json.load(open(os.path.join(bad, "cases.json")))
failures = 0

def run(verb, name):
    return subprocess.run([program, verb, name], cwd=bad, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, text=True, errors="replace")

def complain(verb, name, case, why, result):
    global failures
    failures += 1
    print(f"{verb} {name} ({case['verdict']} at {case['stage']}: {case['why']}): {why}; status {result.returncode}")
    print("   " + (result.stderr or result.stdout)[-600:].strip().replace("\n", "\n   "))

def names(text, mention):
    return all(any(word in text for word in entry.split("|")) for entry in mention)

for name in ["_good", "_good_int4", "_good_v4", *cases]:
    case = cases.get(name, {"verdict": "accept", "stage": "open", "mention": [], "why": "undamaged"})
    before = sorted(os.listdir(os.path.join(bad, name)))
    for verb in ["inspect", "verify"]:
        result = run(verb, name)
        text = result.stdout + result.stderr
        if result.returncode not in (0, 3):
            complain(verb, name, case, "expected exit status 0 or 3", result)
        elif result.returncode == 3 and result.stderr.count("\n") != 1:
            complain(verb, name, case, "expected one line on stderr", result)
        elif case["verdict"] == "accept" and result.returncode != 0:
            complain(verb, name, case, "expected to be accepted", result)
        elif verb == "inspect" and case["stage"] == "data":
            continue
        elif case["verdict"] == "reject" and (result.returncode != 3 or not names(result.stderr, case["mention"])):
            complain(verb, name, case, f"expected to be refused, naming {case['mention']}", result)
        elif case["verdict"] == "warn" and not names(text, case["mention"]):
            complain(verb, name, case, f"expected to be reported, naming {case['mention']}", result)
    if sorted(os.listdir(os.path.join(bad, name))) != before:
        complain("?", name, case, "something was written there", result)

print(f"{len(cases)} cases, {failures} failures")
sys.exit(failures > 0 or not cases)
END
