#!/bin/bash
# tests/faults/kill_pass.sh PROGRAM: mica route and mica imatrix (with both extras) killed (SIGKILL) at moments spread over the run, resumed with another number of
# threads, killed again …: nothing has its final name before it is whole, and then it has the bytes of an uninterrupted run. Environment: KILLS (default 24), SEED.
default_kills=24
. "$(dirname "$0")/kill.sh"
head -c 30000 "$model/heldout.txt" >"$scratch/text"

# Sets the arguments: into directory $1 by threads $2.
choose() {
    case $verb in
    route) arguments=(route "$model" -f "$scratch/text" -o "$1" --threads "$2") ;;
    imatrix) arguments=(imatrix "$model" -f "$scratch/text" -o "$1/m.gguf" --threads "$2" --context 128 --covariance --sensitivity --own-size 4MiB) ;;
    esac
}

partial=0 wholes=0
for verb in route imatrix; do
    rm -rf "$scratch/whole" "$scratch/killed"
    mkdir "$scratch/whole" "$scratch/killed"
    choose "$scratch/whole" 2
    timed "${arguments[@]}"
    result=$(ls "$scratch/whole" | grep -v u32) # the pairs of route come before the statistics
    for ((done_kills = 0; done_kills < kills / 2;)); do
        choose "$scratch/killed" $((RANDOM % 4 + 1))
        draw $took_us
        if killed_after $drawn "${arguments[@]}" --resume; then
            done_kills=$((done_kills + 1))
            [ -e "$scratch/killed/$result.journal" ] && partial=$((partial + 1))
            [ ! -e "$scratch/killed/$result" ] || cmp -s "$scratch/killed/$result" "$scratch/whole/$result" || fail "$result has its name and is not whole"
            continue
        fi
        diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
        wholes=$((wholes + 1))
        rm -f "$scratch"/killed/*
    done
    choose "$scratch/killed" 2
    must "${arguments[@]}" --resume
    diff -r "$scratch/whole" "$scratch/killed" || fail "after $done_kills kills the bytes differ"
done
[ $partial -gt 0 ] || fail "no kill left a journal: nothing was resumed"
echo "passed: $kills kills ($partial left a journal), $((wholes + 2)) results, all alike"
