# tests/faults/kill.sh: what the scripts of this directory share: a module, sourced by them with their arguments, after `default_kills=N`. It gives
# `program`, `model`, `kills` (environment: KILLS), a `scratch` directory that goes with the script, and the functions here; RANDOM is seeded (environment: SEED).
set -u
program=${1:?usage: $(basename "$0") PROGRAM}
model=$(cd "$(dirname "$0")/../.." && pwd)/models/tiny-k2
kills=${KILLS:-$default_kills}
seed=${SEED:-$$}
RANDOM=$seed
echo "seed $seed, $kills kills"
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

fail() {
    echo "failed: $*"
    exit 1
}

# must ARGUMENT...: the program, which has to succeed.
must() {
    "$program" "$@" >"$scratch/output" 2>"$scratch/errors" || fail "mica $*: $(cat "$scratch/errors")"
}

# timed ARGUMENT...: the same; sets took_us.
timed() {
    local begin
    begin=$(date +%s%N)
    must "$@"
    took_us=$((($(date +%s%N) - begin) / 1000))
}

# draw NUMBER: sets drawn to a random one below it. (Not in a subshell, which has random numbers of its own.)
draw() {
    drawn=$(((RANDOM * 32768 + RANDOM) % $1))
}

# killed_after MICROSECONDS ARGUMENT...: runs the program, kills it (SIGKILL) then; true when that came before its end, which has to be a good one.
killed_after() {
    local delay_us=$1 job status
    shift
    "$program" "$@" >"$scratch/output" 2>"$scratch/errors" &
    job=$!
    sleep "$(printf '%d.%06d' $((delay_us / 1000000)) $((delay_us % 1000000)))"
    kill -KILL $job 2>/dev/null
    wait $job 2>/dev/null
    status=$?
    [ $status -eq 137 ] && return 0
    [ $status -eq 0 ] || fail "mica $*: exit status $status: $(cat "$scratch/errors")"
    return 1
}
