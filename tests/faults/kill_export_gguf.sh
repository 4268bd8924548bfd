#!/bin/bash
# tests/faults/kill_export_gguf.sh PROGRAM: mica export killed (SIGKILL) at random moments, resumed, killed again …: no file has its final name before
# all is whole, and then they are byte for byte those of an uninterrupted run. Single, split, and from a GGUF. Environment: KILLS (default 21), SEED.
default_kills=21
. "$(dirname "$0")/kill.sh"
mkdir "$scratch/whole" "$scratch/killed"

# $1: "", "split" or "again" (from a GGUF); sets options and the source.
choose() {
    options=(--format gguf --type q5_k_m --effort max)
    source=$model
    [ "$1" != split ] || options+=(--split-size 3MB)
    [ "$1" = again ] || return
    source=$scratch/source-00001-of-00004.gguf
    [ -e "$source" ] || must export "$model" --format gguf --type bf16 --split-size 9MB -o "$scratch/source.gguf"
}

partial=0 wholes=0
for kind in "" split again; do
    choose "$kind"
    rm -rf "$scratch"/whole/* "$scratch"/killed/*
    timed export "$source" -o "$scratch/whole/m.gguf" --threads 2 "${options[@]}"
    done_kills=0
    while [ $done_kills -lt $((kills / 3)) ]; do
        draw $took_us
        if killed_after $drawn export "$source" -o "$scratch/killed/m.gguf" --threads $((RANDOM % 4 + 1)) --resume "${options[@]}"; then
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
    must export "$source" -o "$scratch/killed/m.gguf" --resume "${options[@]}"
    diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
done
[ $partial -gt 0 ] || fail "no kill left a journal: nothing was resumed"
echo "passed: $kills kills ($partial left a journal), $((wholes + 3)) exports, all alike"
