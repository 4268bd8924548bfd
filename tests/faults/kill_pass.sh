#!/bin/bash
# tests/faults/kill_pass.sh PROGRAM: mica route and mica imatrix (with both extras) killed (SIGKILL) at moments spread over the run, resumed with another number of
# threads, killed again …: nothing has its final name before it is whole, and then it has the bytes of an uninterrupted run. Environment: KILLS (default 24), SEED.
set -u
program=${1:?usage: kill_pass.sh PROGRAM}
model=$(cd "$(dirname "$0")/../.." && pwd)/models/tiny-k2
kills=${KILLS:-24}
RANDOM=${SEED:-$$}
echo "seed ${SEED:-$$}, $kills kills"
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
head -c 30000 "$model/heldout.txt" >"$scratch/text"

fail() {
    echo "failed: $*"
    cat "$scratch/errors"
    exit 1
}

now() { date +%s%N; }

# Sets the command: into directory $1 by threads $2; what else it says stands in $options.
choose() {
    case $verb in
    route) command=("$program" route "$model" -f "$scratch/text" -o "$1" --threads "$2" $options) ;;
    imatrix) command=("$program" imatrix "$model" -f "$scratch/text" -o "$1/m.gguf" --threads "$2" --context 128 --covariance --sensitivity --own-size 4MiB $options) ;;
    esac
}

run() {
    choose "$@"
    "${command[@]}" >"$scratch/output" 2>"$scratch/errors"
}

# Starts or resumes in the background, kills after $1 microseconds; true when the kill came before the end.
killed_after() {
    choose "$scratch/killed" $((RANDOM % 4 + 1))
    "${command[@]}" >"$scratch/output" 2>"$scratch/errors" &
    local job=$!
    sleep "$(printf '%d.%06d' $(($1 / 1000000)) $(($1 % 1000000)))"
    kill -KILL $job 2>/dev/null
    wait $job 2>/dev/null
    local status=$?
    [ $status -eq 137 ] && return 0
    [ $status -eq 0 ] || fail "exit status $status"
    return 1
}

partial=0 wholes=0
for verb in route imatrix; do
    options=
    rm -rf "$scratch/whole" "$scratch/killed"
    mkdir "$scratch/whole" "$scratch/killed"
    begin=$(now)
    run "$scratch/whole" 2 || fail "the uninterrupted run"
    whole_us=$((($(now) - begin) / 1000))
    result=$(ls "$scratch/whole" | grep -v u32) # the pairs of route come before the statistics
    options=--resume
    for ((done_kills = 0; done_kills < kills / 2;)); do
        if killed_after $(((RANDOM * 32768 + RANDOM) % whole_us)); then
            done_kills=$((done_kills + 1))
            [ -e "$scratch/killed/$result.journal" ] && partial=$((partial + 1))
            [ ! -e "$scratch/killed/$result" ] || cmp -s "$scratch/killed/$result" "$scratch/whole/$result" || fail "$result has its name and is not whole"
            continue
        fi
        diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
        wholes=$((wholes + 1))
        rm -f "$scratch"/killed/*
    done
    run "$scratch/killed" 2 || fail "the last run"
    diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
done
[ $partial -gt 0 ] || fail "no kill left a journal: nothing was resumed"
echo "passed: $kills kills ($partial left a journal), $((wholes + 2)) results, all alike"
