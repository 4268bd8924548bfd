#!/bin/bash
# tests/cli/memory.sh PROGRAM: `mica run --memory` is kept: the peak of the process's memory is within 5 % of the budget, at the least that a refusal
# names (which is enough) and a little above it, where the cache holds a part of the experts.
set -u
program=$(realpath "$1")
model=$(realpath "$(dirname "$0")/../../models/tiny-k2")
if grep -q __asan_init "$program" || grep -q __tsan_init "$program"; then
    echo "skipped: a sanitizer has memory of its own"
    exit 77
fi
prompt="In the beginning"
run() { "$program" run "$model" -p "$prompt" -n 40 --threads 2 --memory "$1" 2>&1 >/dev/null; }
least_of() { sed -nE 's/.*expected at least ([0-9.]+) MiB.*/\1/p'; }
least=$(run 1MiB | least_of)
[ -n "$least" ] || { echo "the refusal does not tell the least budget"; run 1MiB; exit 1; }
failures=0
for more in 0 1 2 4 1; do # the least that was told is enough; at last with a prompt that fills a batch
    budget=$(awk -v least="$least" -v more=$more 'BEGIN { printf "%d", (least + more) * 1024 + 0.5 }')
    line=$(run ${budget}KiB)
    budget=$(awk -v budget="$budget" 'BEGIN { print budget / 1024 }')
    peak=$(sed -nE 's/.*peak ([0-9.]+) MiB.*/\1/p' <<<"$line")
    echo "budget $budget MiB: peak ${peak:-?} MiB"
    [ $more -ne 4 ] || prompt=$(head -c 1700 "$model/heldout.txt")
    awk -v peak="${peak:-1e9}" -v budget="$budget" 'BEGIN { exit !(peak <= 1.05 * budget) }' || { echo "$line"; failures=$((failures + 1)); }
done

# Two checkpoints have a half each, and the refusal says so; twice what it tells is enough.
compare() { "$program" perplexity "$model" --ids 1,2,3,4,5,6,7,8 --against "$model" --memory "$1" 2>&1; }
line=$(compare 2MiB)
grep -q 'got 1.00 MiB, a half of the budget' <<<"$line" || { echo "$line"; failures=$((failures + 1)); }
budget=$(least_of <<<"$line" | awk '{ printf "%d", 2 * $1 * 1024 + 0.5 }')
compare "${budget}KiB" >/dev/null || { echo "$budget KiB, twice the least of one"; compare "${budget}KiB"; failures=$((failures + 1)); }
exit $((failures > 0))
