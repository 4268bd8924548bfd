#!/bin/bash
# tests/faults/kill_export_safetensors.sh PROGRAM: mica export --format safetensors killed (SIGKILL) at random moments, resumed, killed again …: the result is byte
# for byte that of an uninterrupted run, as stored, decoded to bf16, and from a GGUF, and no file has its name before all is there.
# Environment: KILLS (default 20), SEED.
set -u
program=${1:?usage: kill_export_safetensors.sh PROGRAM}
model=$(cd "$(dirname "$0")/../.." && pwd)/models/tiny-k2
kills=${KILLS:-20}
RANDOM=${SEED:-$$}
echo "seed ${SEED:-$$}, $kills kills of each kind"
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

fail() {
    echo "failed: $*"
    exit 1
}

now() { date +%s%N; }

# Starts or resumes, kills after $1 microseconds; true when the kill came before the end.
killed_after() {
    local wait_us=$1
    shift
    "$program" export "$model" --format safetensors -o "$scratch/killed" --resume --threads $((RANDOM % 4 + 1)) --json "$@" >"$scratch/report" \
        2>"$scratch/errors" &
    local job=$! status
    sleep "$(printf '%d.%06d' $((wait_us / 1000000)) $((wait_us % 1000000)))"
    kill -KILL $job 2>/dev/null
    wait $job 2>/dev/null
    status=$?
    [ $status -eq 137 ] && return 0
    [ $status -eq 0 ] || fail "exit status $status: $(cat "$scratch/errors")"
    grep -q '"units_resumed": 0,' "$scratch/report" || resumed=$((resumed + 1))
    return 1
}

# An index, the only file that a reader begins with, means that all is there.
check_names() {
    [ ! -e "$scratch/killed/model.safetensors.index.json" ] || "$program" inspect "$scratch/killed" >/dev/null || fail "an index without its shards"
}

try_kind() {
    local begin whole_us done_kills=0 wholes=0
    rm -rf "$scratch/whole" "$scratch/killed"
    begin=$(now)
    "$program" export "$model" --format safetensors -o "$scratch/whole" --threads 2 "$@" >/dev/null 2>"$scratch/errors" || fail "$(cat "$scratch/errors")"
    whole_us=$((($(now) - begin) / 1000))
    resumed=0
    while [ $done_kills -lt "$kills" ] || { [ -n "$record" ] && [ $resumed -eq 0 ]; }; do
        [ $done_kills -lt $((10 * kills)) ] || fail "no run went on from a record in the journal"
        local span=$((whole_us / (RANDOM % 4 + 1) + 1))
        if killed_after $(((RANDOM * 32768 + RANDOM) % span)) "$@"; then
            done_kills=$((done_kills + 1))
            check_names
            continue
        fi
        diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
        wholes=$((wholes + 1))
        rm -rf "$scratch/killed"
    done
    "$program" export "$model" --format safetensors -o "$scratch/killed" --resume "$@" >/dev/null 2>"$scratch/errors" || fail "$(cat "$scratch/errors")"
    diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
    echo "$done_kills kills, $((wholes + 1)) exports, $resumed of them from a record in the journal, all alike: $*"
}

record=wanted
try_kind --shard-size 1MB
try_kind --shard-size 3MB --dtype bf16
gguf=$scratch/source-00001-of-00003.gguf
"$program" export "$model" --format gguf --type q8_0 --split-size 5MB -o "$scratch/source.gguf" >/dev/null || fail "no GGUF to begin with"
model=$gguf
record= # it is over too soon for one: tests/operations/test_export_back.c goes on from records
try_kind --shard-size 3MB --dtype f32
echo "passed"
