#!/bin/bash
# tests/faults/kill_export_safetensors.sh PROGRAM: mica export --format safetensors killed (SIGKILL) at random moments, resumed, killed again …: the result is byte
# for byte that of an uninterrupted run, as stored, decoded to bf16, and from a GGUF, and no file has its name before all is there.
# Environment: KILLS (default 20, of each kind), SEED.
default_kills=20
. "$(dirname "$0")/kill.sh"

# An index, the only file that a reader begins with, means that all is there.
check_names() {
    [ ! -e "$scratch/killed/model.safetensors.index.json" ] || "$program" inspect "$scratch/killed" >/dev/null || fail "an index without its shards"
}

try_kind() {
    local done_kills=0 wholes=0
    local options=("$model" --format safetensors "$@")
    rm -rf "$scratch/whole" "$scratch/killed"
    timed export -o "$scratch/whole" --threads 2 "${options[@]}"
    resumed=0
    while [ $done_kills -lt "$kills" ] || { [ -n "$record" ] && [ $resumed -eq 0 ]; }; do
        [ $done_kills -lt $((10 * kills)) ] || fail "no run went on from a record in the journal"
        draw $((took_us / (RANDOM % 4 + 1) + 1)) # often a short way, so that one export sees many kills
        if killed_after $drawn export -o "$scratch/killed" --resume --threads $((RANDOM % 4 + 1)) --json "${options[@]}"; then
            done_kills=$((done_kills + 1))
            check_names
            continue
        fi
        grep -q '"units_resumed": 0,' "$scratch/output" || resumed=$((resumed + 1))
        diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
        wholes=$((wholes + 1))
        rm -rf "$scratch/killed"
    done
    must export -o "$scratch/killed" --resume "${options[@]}"
    diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
    echo "$done_kills kills, $((wholes + 1)) exports, $resumed of them from a record in the journal, all alike: $*"
}

record=wanted
try_kind --shard-size 1MB
try_kind --shard-size 3MB --dtype bf16
must export "$model" --format gguf --type q8_0 --split-size 5MB -o "$scratch/source.gguf"
model=$scratch/source-00001-of-00003.gguf
record= # it is over too soon for one: tests/operations/test_export_back.c goes on from records
try_kind --shard-size 3MB --dtype f32
echo "passed"
