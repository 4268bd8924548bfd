#!/bin/bash
# tests/cli/transcripts.sh PROGRAM [--update]: what was typed, what must be printed. Each transcripts/*.txt is replayed and compared whole.
#   $ command   run by bash in a scratch directory (one a file) where `models` is the repository's and `mica` is PROGRAM;
#               `| mask` hides what differs from machine to machine: times and shares of them, memory, rounding errors
#               and what follows from them: hashes, sizes in bytes
#     line      it printed on stdout (two spaces before it)
#   ! line      it printed on stderr
#   ? status    its exit status, if not 0
# All other lines are comments. --update rewrites the files: read the difference before keeping it.
set -u
program=$(realpath "$1")
update=${2:-}
here=$(realpath "$(dirname "$0")")
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/bin"
ln -s "$program" "$scratch/bin/mica"
cat >"$scratch/bin/mask" <<'END'
#!/bin/sh
exec sed -E 's/ *[0-9.]+e-[0-9]+/ …/g; s/\b[0-9.]+ (s|MB at most|MiB at most|hours)\b/… \1/g; s/\b[0-9.]+%/…%/g; s/\b[0-9]+ bytes/… bytes/g; s/[0-9a-f]{16}…/#/g'
END
chmod +x "$scratch/bin/mask"
PATH=$scratch/bin:$PATH
export PATH LC_ALL=C

# A result of its own for each command, so that a lost newline at the end of the output shows.
replay() { # transcript
    local line status
    while IFS= read -r line; do
        case $line in
        '$ '*)
            echo "$line"
            bash -c "${line#??}" >"$scratch/stdout" 2>"$scratch/stderr" </dev/null
            status=$?
            sed 's/^/  /' "$scratch/stdout"
            [ -z "$(tail -c1 "$scratch/stdout")" ] || echo "  (no newline at the end)"
            sed 's/^/! /' "$scratch/stderr"
            [ $status -eq 0 ] || echo "? $status"
            ;;
        '  '* | '! '* | '? '* | '!' | '  ') ;;
        *) echo "$line" ;;
        esac
    done <"$1"
}

failures=0
for transcript in "$here"/transcripts/*.txt; do
    mkdir "$scratch/work" && cd "$scratch/work" && ln -s "$here/../../models" models || exit 1
    replay "$transcript" >"$scratch/replayed"
    cd "$here" && rm -rf "$scratch/work"
    if [ "$update" = --update ]; then
        cp "$scratch/replayed" "$transcript"
    elif ! diff -u --label "expected $(basename "$transcript")" "$transcript" --label printed "$scratch/replayed"; then
        failures=$((failures + 1))
    fi
done
exit $((failures > 0))
