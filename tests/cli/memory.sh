#!/bin/bash
# tests/cli/memory.sh PROGRAM: `mica run --memory` is kept: the peak of the process's memory is within 5 % of the budget, at the least budget that is
# taken and a little above it, where the cache holds a part of the experts.
set -u
program=$(realpath "$1")
model=$(realpath "$(dirname "$0")/../../models/tiny-k2")
if grep -q __asan_init "$program" || grep -q __tsan_init "$program"; then
    echo "skipped: a sanitizer has memory of its own"
    exit 77
fi
prompt="In the beginning"
run() { "$program" run "$model" -p "$prompt" -n 40 --threads 2 --memory "$1" 2>&1 >/dev/null; }
least=$(run 1MiB | sed -nE 's/.*expected at least ([0-9]+)(\.[0-9]+)? MiB.*/\1/p')
[ -n "$least" ] || { echo "the refusal does not tell the least budget"; run 1MiB; exit 1; }
failures=0
for more in 1 2 4 1; do # at last with a prompt that fills a batch
    budget=$((least + more))
    line=$(run ${budget}MiB)
    for more_again in 1 2 3; do # what a process has before it opens a model differs from run to run by some 0.5 MiB, and is a part of the least
        grep -q "expected at least" <<<"$line" || break
        budget=$((budget + 1))
        line=$(run ${budget}MiB)
    done
    peak=$(sed -nE 's/.*peak ([0-9.]+) MiB.*/\1/p' <<<"$line")
    echo "budget $budget MiB: peak ${peak:-?} MiB"
    [ $more -ne 4 ] || prompt=$(head -c 1700 "$model/heldout.txt")
    awk -v peak="${peak:-1e9}" -v budget="$budget" 'BEGIN { exit !(peak <= 1.05 * budget) }' || { echo "$line"; failures=$((failures + 1)); }
done
exit $((failures > 0))
