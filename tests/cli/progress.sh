#!/bin/bash
# tests/cli/progress.sh PROGRAM: one line, on a terminal only, not wider than it, wiped at the end; results stay on stdout.
set -u
program=$(realpath "$1")
model=$(realpath "$(dirname "$0")/../../models/tiny-k2")
if ! command -v script >/dev/null; then
    echo "skipped: script (util-linux) is not there"
    exit 77
fi
if ! script -qec true /dev/null >/dev/null 2>&1 </dev/null; then
    echo "skipped: no pseudo-terminal can be made here"
    exit 77
fi
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
export LC_ALL=C
failures=0

fail() {
    echo "$1"
    failures=$((failures + 1))
}

"$program" verify "$model" >plain 2>stderr || fail "verify failed: $(cat stderr)"
[ ! -s stderr ] || fail "progress where no terminal is: $(cat stderr)"

for columns in 40 200; do
    # stderr is the terminal, whose record goes to `seen`; stdout is a file
    script -qec "stty cols $columns; exec '$program' verify '$model' >out" /dev/null >seen </dev/null
    cmp plain out || fail "the report differs on a terminal"
    tr '\r' '\n' <seen | grep -a -q 'verifying .*% .*/' || fail "no progress on a terminal of $columns columns"
    widest=$(tr '\r' '\n' <seen | awk '{ if (length > widest) widest = length } END { print widest + 0 }')
    [ "$widest" -lt "$columns" ] || fail "a line of $widest columns on a terminal of $columns"
    [ "$(tr '\r' '\n' <seen | grep -v '^$' | tail -1 | tr -d ' ')" = "" ] || fail "the line was not wiped"
    [ "$(tr -dc '\n' <seen | wc -c)" -eq 0 ] || fail "more than one line"
done
exit $((failures > 0))
