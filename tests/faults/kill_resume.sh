#!/bin/bash
# tests/faults/kill_resume.sh PROGRAM: mica index killed (SIGKILL) at random moments, resumed, killed again …: the vindex is byte for byte
# that of an uninterrupted run. Also: a resume under another instruction set is refused. Environment: KILLS (default 20), SEED.
default_kills=20
. "$(dirname "$0")/kill.sh"
options=(--spectra gate,down --full-spectrum gate)

timed index "$model" -o "$scratch/whole" --threads 2 "${options[@]}"
[ $took_us -gt 20000 ] || took_us=20000

done_kills=0 wholes=0 partial=0 refused=0
while [ $done_kills -lt "$kills" ]; do
    # Mostly short steps, so that one vindex sees many kills; sometimes anywhere in a whole run.
    draw $((took_us / (RANDOM % 6 + 1) + 1))
    if killed_after $drawn index "$model" -o "$scratch/killed" --threads $((RANDOM % 4 + 1)) --resume "${options[@]}"; then
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
must index "$model" -o "$scratch/killed" --resume "${options[@]}"
diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
must verify "$scratch/killed"
[ $partial -gt 0 ] || fail "no kill left a journal with records: nothing was resumed"
echo "passed: $done_kills kills ($partial with records in the journal), $((wholes + 1)) vindexes, all alike"
