#!/bin/bash
# tests/faults/kill_export_gguf.sh PROGRAM: mica export killed (SIGKILL) at random moments, resumed, killed again …: no file has its final name before
# all is whole, and then they are byte for byte those of an uninterrupted run. Single, split, and from a GGUF. Environment: KILLS (default 21), SEED.
set -u
program=${1:?usage: kill_export_gguf.sh PROGRAM}
model=$(cd "$(dirname "$0")/../.." && pwd)/models/tiny-k2
kills=${KILLS:-21}
RANDOM=${SEED:-$$}
echo "seed ${SEED:-$$}, $kills kills"
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/whole" "$scratch/killed"

fail() {
    echo "failed: $*"
    exit 1
}

now() { date +%s%N; }

# $1: "", "split" or "again" (from a GGUF); sets options and the source.
choose() {
    options=(--format gguf --type q5_k_m --effort max)
    source=$model
    [ "$1" != split ] || options+=(--split-size 3MB)
    [ "$1" = again ] || return
    source=$scratch/source-00001-of-00004.gguf
    [ -e "$source" ] || "$program" export "$model" --format gguf --type bf16 --split-size 9MB -o "$scratch/source.gguf" >/dev/null || fail "no source"
}

# Starts or resumes, kills after $1 microseconds; true when the kill came before the end.
killed_after() {
    "$program" export "$source" -o "$scratch/killed/m.gguf" --threads $((RANDOM % 4 + 1)) --resume "${options[@]}" >"$scratch/output" 2>"$scratch/errors" &
    local job=$!
    sleep "$(printf '%d.%06d' $(($1 / 1000000)) $(($1 % 1000000)))"
    kill -KILL $job 2>/dev/null
    wait $job 2>/dev/null
    local status=$?
    [ $status -eq 137 ] && return 0
    [ $status -eq 0 ] || fail "exit status $status: $(cat "$scratch/errors")"
    return 1
}

partial=0 wholes=0
for kind in "" split again; do
    choose "$kind"
    rm -rf "$scratch"/whole/* "$scratch"/killed/*
    begin=$(now)
    "$program" export "$source" -o "$scratch/whole/m.gguf" --threads 2 "${options[@]}" >/dev/null 2>"$scratch/errors" || fail "$(cat "$scratch/errors")"
    whole_us=$((($(now) - begin) / 1000))
    done_kills=0
    while [ $done_kills -lt $((kills / 3)) ]; do
        if killed_after $(((RANDOM * 32768 + RANDOM) % whole_us)); then
            done_kills=$((done_kills + 1))
            if [ -e "$scratch/killed/m.gguf.journal" ]; then
                partial=$((partial + 1))
                for file in "$scratch"/killed/*.gguf; do
                    [ ! -e "$file" ] || cmp -s "$file" "$scratch/whole/$(basename "$file")" || fail "$file has its name and is not whole"
                done
            fi
            continue
        fi
        diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
        wholes=$((wholes + 1))
        rm -f "$scratch"/killed/*
    done
    "$program" export "$source" -o "$scratch/killed/m.gguf" --resume "${options[@]}" >/dev/null 2>"$scratch/errors" || fail "$(cat "$scratch/errors")"
    diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
done
[ $partial -gt 0 ] || fail "no kill left a journal: nothing was resumed"
echo "passed: $kills kills ($partial left a journal), $((wholes + 3)) exports, all alike"
