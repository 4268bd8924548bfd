#!/bin/bash
# tests/cli/interrupt.sh PROGRAM: SIGINT and SIGTERM end an index, a route, an imatrix cleanly (exit status 130, a sentence that names --resume), at
# whatever moment they come; --resume then gives byte for byte what an uninterrupted run gives. A perplexity that is ended leaves nothing.
set -u
set -m # or background jobs would ignore SIGINT
program=$(realpath "$1")
model=$(realpath "$(dirname "$0")/../../models/tiny-k2")
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
export LC_ALL=C
head -c 60000 "$model/heldout.txt" >text
interrupted=0
failures=0

fail() {
    echo "$verb: $1"
    cat stderr
    failures=$((failures + 1))
}

# Into $1, a directory; further words are options.
choose() {
    case $verb in
    index) command=("$program" index "$model" -o "$1" --threads 2 --layers 1-3 --spectra gate,up,down "${@:2}") journal=$1/journal.mica ;;
    route) command=("$program" route "$model" -o "$1" -f text "${@:2}") journal=$1/phase3_routing_stats.json.journal ;;
    imatrix) command=("$program" imatrix "$model" -o "$1/m.gguf" -f text --context 128 --sensitivity "${@:2}") journal=$1/m.gguf.journal ;;
    perplexity) command=("$program" perplexity "$model" -f text --context 64) journal=nothing ;;
    esac
}

run() {
    choose "$@"
    "${command[@]}" >stdout 2>stderr
}

# Starts, and sends the signals $1 a while after it is at work.
run_until() {
    choose part
    "${command[@]}" >stdout 2>stderr &
    child=$!
    for ((i = 0; i < 500; i++)); do
        [ -s "$journal" ] || [ $verb = perplexity ] && break
        kill -0 $child 2>/dev/null || break
        sleep 0.01
    done
    sleep 0.$((RANDOM % 2))$((RANDOM % 10))
    for one in $1; do
        kill -$one $child 2>/dev/null
    done
    wait $child 2>/dev/null
}

for verb in index route imatrix; do
    rm -rf whole part
    [ $verb = index ] || mkdir whole
    run whole || { fail "the uninterrupted run failed"; continue; }
    for signal in INT TERM "INT INT"; do # the same twice at once is one wish
        rm -rf part
        [ $verb != imatrix ] || mkdir part
        run_until "$signal"
        status=$?
        [ $status -eq 0 ] && continue # it was done before
        if [ $status -ne 130 ] || ! grep -q "^mica $verb: .*--resume" stderr || [ -s stdout ] || [ "$(wc -l <stderr)" -ne 1 ]; then
            fail "SIG$signal: expected status 130, one line that names --resume and nothing else; got status $status"
            continue
        fi
        interrupted=$((interrupted + 1))
        choose part
        [ ! -s "$journal" ] || ! run part || fail "an unfinished result was overwritten without --resume or --force"
        run part --resume || fail "--resume failed"
        diff -r whole part || fail "after SIG$signal and --resume the result differs"
    done
done

verb=perplexity
rm -rf part
before=$(ls)
run_until INT
status=$?
if [ $status -ne 0 ] && { [ $status -ne 130 ] || [ -s stdout ] || [ "$(wc -l <stderr)" -ne 1 ]; }; then
    fail "SIGINT: expected status 130, one line and no result; got status $status"
fi
[ "$(ls)" = "$before" ] || fail "it left files"
[ $interrupted -gt 0 ] || fail "no run was interrupted: nothing was tested"
exit $((failures > 0))
