#!/bin/bash
# tests/cli/streams.sh PROGRAM: where the output goes, and what happens when it cannot: a lost write is exit status 3 with a sentence.
set -u
program=$(realpath "$1")
model=$(realpath "$(dirname "$0")/../../models/tiny-k2")
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
export LC_ALL=C
failures=0

expect() { # what, status, line of stderr or ""
    if [ "$status" -ne "$2" ] || [ "$(cat stderr)" != "$3" ]; then
        printf '%s: expected status %s and "%s", got status %s and:\n' "$1" "$2" "$3" "$status"
        cat stderr
        failures=$((failures + 1))
    fi
}

full="cannot write to the standard output: No space left on device"
for arguments in --version --help; do
    "$program" $arguments >/dev/full 2>stderr
    status=$?
    expect "mica $arguments on a full device" 3 "mica: $full"
done
for verb in inspect index stats verify; do
    "$program" $verb --help >/dev/full 2>stderr
    status=$?
    expect "mica $verb --help on a full device" 3 "mica $verb: $full"
done
for form in "" --json; do
    "$program" inspect "$model" $form >/dev/full 2>stderr
    status=$?
    expect "mica inspect $form on a full device" 3 "mica inspect: $full"
done

for prompt in "-p The capital of France is" "--ids 1,2"; do # one line: not also that it was interrupted, nor what it would have measured
    "$program" run "$model" "${prompt%% *}" "${prompt#* }" -n 3 >/dev/full 2>stderr
    status=$?
    expect "mica run $prompt on a full device" 3 "mica run: $full"
done
# What fails after something was said begins on a line of its own.
"$program" run "$model" -p "The capital" --context 1 >out 2>stderr
status=$?
expect "a prompt that does not fit" 3 "mica run: expected at most 1 tokens in the context that is left (of 1; --context), got 2"
[ ! -s out ] || { echo "a prompt that does not fit: was printed: $(cat out)"; failures=$((failures + 1)); }

"$program" inspect "$model" 2>stderr >&-
status=$?
expect "stdout closed" 3 "mica inspect: cannot write to the standard output: Bad file descriptor"

# The reader is gone before anything is written.
{ sleep 0.3; "$program" inspect "$model" 2>stderr; echo $? >status; } | true
status=$(cat status)
expect "a closed pipe" 3 "mica inspect: cannot write to the standard output: Broken pipe"

# Without stderr and stdin all is as ever.
"$program" inspect "$model" >out 2>&- <&-
status=$?
: >stderr
expect "stderr closed" 0 ""
"$program" inspect "$model" 2>stderr | cmp - out || failures=$((failures + 1))

# The locale changes nothing.
for locale in $(locale -a 2>/dev/null | head -20); do
    LC_ALL=$locale "$program" inspect "$model" --json >json.$locale 2>stderr
    LC_ALL=C "$program" inspect "$model" --json | cmp - json.$locale || failures=$((failures + 1))
done
exit $((failures > 0))
