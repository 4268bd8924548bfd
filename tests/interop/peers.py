"""tests/interop/peers.py: what the scripts of this directory begin and end with. Importing it goes on under the peers' own Python (build/peers/venv, which
scripts/setup-peers makes) where there is one; imports of peers stand under `with peers.needed():`, which skips the script where one is missing."""
import contextlib
import os
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
PEERS = os.path.join(ROOT, "build", "peers")
VENV = os.path.join(PEERS, "venv")
PYTHON = os.path.join(VENV, "bin", "python")
checks = failures = 0

if os.path.exists(PYTHON) and os.path.realpath(sys.prefix) != os.path.realpath(VENV):
    os.execv(PYTHON, [PYTHON, *sys.argv])


def skip(reason):
    print(f"skipped: {reason} (scripts/setup-peers)")
    sys.exit(77)


@contextlib.contextmanager
def needed():
    try:
        yield
    except ImportError as missing:
        skip(missing)


def check(holds, what):
    global checks, failures
    checks += 1
    if not holds:
        failures += 1
        print(f"failed: {what}", flush=True)


def finish():
    """Nothing checked is nothing passed."""
    print(f"{checks} checks, {failures} failed")
    sys.exit(failures != 0 or checks == 0)
