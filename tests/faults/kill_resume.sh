#!/bin/bash
# tests/faults/kill_resume.sh PROGRAM: mica index killed (SIGKILL) at random moments, resumed, killed again …: the vindex is byte for byte
# that of an uninterrupted run. Also: a resume under another instruction set is refused. Environment: KILLS (default 20), SEED.
set -u
program=${1:?usage: kill_resume.sh PROGRAM}
model=$(cd "$(dirname "$0")/../.." && pwd)/models/tiny-k2
kills=${KILLS:-20}
RANDOM=${SEED:-$$}
echo "seed ${SEED:-$$}, $kills kills"
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
options=(--spectra gate,down --full-spectrum gate)

fail() {
    echo "failed: $*"
    exit 1
}

now() { date +%s%N; }

begin=$(now)
"$program" index "$model" -o "$scratch/whole" --threads 2 "${options[@]}" >/dev/null 2>"$scratch/errors" || fail "$(cat "$scratch/errors")"
whole_us=$((($(now) - begin) / 1000))
[ "$whole_us" -gt 20000 ] || whole_us=20000

# Starts or resumes, kills after $1 microseconds; true when the kill came before the end.
killed_after() {
    "$program" index "$model" -o "$scratch/killed" --threads $((RANDOM % 4 + 1)) --resume "${options[@]}" >"$scratch/output" 2>"$scratch/errors" &
    local job=$!
    sleep "$(printf '0.%06d' $(($1 % 1000000)))"
    [ "$1" -lt 1000000 ] || sleep $(($1 / 1000000))
    kill -KILL $job 2>/dev/null
    wait $job 2>/dev/null
    local status=$?
    [ $status -eq 137 ] && return 0
    [ $status -eq 0 ] || fail "exit status $status: $(cat "$scratch/errors")"
    return 1
}

done_kills=0 wholes=0 partial=0 refused=0
while [ $done_kills -lt "$kills" ]; do
    # Mostly short steps, so that one vindex sees many kills; sometimes anywhere in a whole run.
    span=$((whole_us / (RANDOM % 6 + 1) + 1))
    if killed_after $(((RANDOM * 32768 + RANDOM) % span)); then
        done_kills=$((done_kills + 1))
        [ "$(stat -c %s "$scratch/killed/journal.mica" 2>/dev/null || echo 0)" -gt 5000 ] && partial=$((partial + 1))
        if [ $refused -eq 0 ] && [ -e "$scratch/killed/journal.mica" ]; then
            if MICA_CPU=portable "$program" index "$model" -o "$scratch/killed" --resume "${options[@]}" >/dev/null 2>"$scratch/errors"; then
                # The processor has nothing else than the portable kernels: it was the same arithmetic, and is finished now.
                diff -r "$scratch/whole" "$scratch/killed" || fail "the portable resume gave other bytes"
                rm -rf "$scratch/killed"
            else
                grep -q "arithmetic" "$scratch/errors" || fail "another instruction set: $(cat "$scratch/errors")"
            fi
            refused=1
        fi
        continue
    fi
    diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
    wholes=$((wholes + 1))
    rm -rf "$scratch/killed"
done
"$program" index "$model" -o "$scratch/killed" --resume "${options[@]}" >/dev/null 2>"$scratch/errors" || fail "$(cat "$scratch/errors")"
diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
"$program" verify "$scratch/killed" >/dev/null || fail "verify finds fault"
[ $partial -gt 0 ] || fail "no kill left a journal with records: nothing was resumed"
echo "passed: $done_kills kills ($partial with records in the journal), $((wholes + 1)) vindexes, all alike"
