#!/bin/bash
# tests/cli/interrupt.sh PROGRAM: SIGINT and SIGTERM end an index cleanly (exit status 130, a sentence that names --resume), at whatever
# moment they come; --resume then gives byte for byte what an uninterrupted run gives.
set -u
set -m # or background jobs would ignore SIGINT
program=$(realpath "$1")
model=$(realpath "$(dirname "$0")/../../models/tiny-k2")
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
export LC_ALL=C
options="--threads 2 --layers 1-3 --spectra gate,up,down"
interrupted=0
failures=0

fail() {
    echo "$1"
    cat stderr
    failures=$((failures + 1))
}

"$program" index "$model" -o whole $options >/dev/null 2>stderr || { fail "the uninterrupted run failed"; exit 1; }

for signal in INT TERM "INT INT"; do # the same twice at once is one wish
    rm -rf part
    "$program" index "$model" -o part $options >stdout 2>stderr &
    child=$!
    for ((i = 0; i < 500; i++)); do # until it is at work
        [ -s part/journal.mica ] && break
        sleep 0.01
    done
    sleep 0.0$((RANDOM % 10))
    for one in $signal; do
        kill -$one $child
    done
    wait $child 2>/dev/null
    status=$?
    [ $status -eq 0 ] && continue # it was done before
    if [ $status -ne 130 ] || ! grep -q '^mica index: .*--resume' stderr || [ -s stdout ] || [ "$(wc -l <stderr)" -ne 1 ]; then
        fail "SIG$signal: expected status 130, one line that names --resume and nothing else; got status $status"
        continue
    fi
    interrupted=$((interrupted + 1))
    "$program" index "$model" -o part $options >/dev/null 2>stderr && fail "an unfinished vindex was overwritten without --resume or --force"
    "$program" index "$model" -o part $options --resume >/dev/null 2>stderr || fail "--resume failed"
    diff -r whole part || fail "after SIG$signal and --resume the vindex differs"
done
[ $interrupted -gt 0 ] || fail "no run was interrupted: nothing was tested"
exit $((failures > 0))
