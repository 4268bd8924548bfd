#!/bin/bash
# tests/faults/kill_store.sh PROGRAM: import, gc and remove of a store killed (SIGKILL) at random moments, while readers read. After every kill the
# models that were committed are whole (verify reads every byte; their digests are those of a store that was never killed), and the same
# command, or another, goes on. Also: two writers at once. Environment: KILLS (default 20, of each), SEED.
default_kills=20
. "$(dirname "$0")/kill.sh"
cd "$scratch" || exit 1

# digest STORE NAME: what a model's rows are: names, types, hashes, files.
digest() {
    "$program" ls "$1" --json | python3 -c 'import json, sys
print(*(m["digest"] for m in json.load(sys.stdin)["models"] if m["name"] == sys.argv[1] and m["whole"]))' "$2"
}

# A model that shares all but a third of the bytes of one shard.
cp -rL "$model" other
bytes=$(stat -c %s other/model-00003-of-00003.safetensors)
python3 -c 'import random, sys
sys.stdout.buffer.write(bytes(random.Random(1).choices(range(1, 64), k=int(sys.argv[1]))))' $((bytes / 3)) | # finite in every type
    dd of=other/model-00003-of-00003.safetensors bs=1M seek=$((bytes / 2)) oflag=seek_bytes conv=notrunc status=none
cp -rL "$model" base

options=(--pack-size 1MB --threads 2)
must import base -o whole "${options[@]}"
timed import other -o whole "${options[@]}"
import_us=$((took_us + 2000))
base=$(digest whole base) other=$(digest whole other)
[ -n "$base" ] && [ -n "$other" ] || fail "no digests"
cp -r whole doomed
must remove doomed base
timed gc doomed "${options[@]}"
gc_us=$((took_us + 2000))

# Readers, all the while: a model that is whole is never out of their sight, and never wrong.
reading=
start_reading() { # STORE NAME
    touch reading
    (
        while [ -e reading ]; do
            "$program" verify "$1#$2" >reader.output 2>reader.errors || { cat reader.errors >reader.failed; break; }
        done
    ) &
    reading=$!
}
stop_reading() {
    rm -f reading
    wait $reading
    [ ! -e reader.failed ] || fail "a reader of $1: $(cat reader.failed)"
}

# --- import

must import base -o store "${options[@]}"
start_reading store base
done_kills=0 partial=0 wholes=0
while [ $done_kills -lt "$kills" ]; do
    how=(--resume)
    [ $((RANDOM % 4)) -ne 0 ] || how=()
    draw $((import_us * 3 / 2))
    if killed_after $drawn import other -o store "${options[@]}" "${how[@]}"; then
        done_kills=$((done_kills + 1))
        if [ -e store/catalogue.sqlite ]; then
            must verify store
            [ "$(digest store base)" = "$base" ] || fail "import: kill $done_kills: base is another"
            grep -q other <("$program" ls store) && [ -z "$(digest store other)" ] && partial=$((partial + 1))
        fi
        [ -z "$(digest store other)" ] || [ "$(digest store other)" = "$other" ] || fail "import: kill $done_kills: other is another"
    fi
    if [ -n "$(digest store other)" ]; then
        [ "$(digest store other)" = "$other" ] || fail "import: other is another"
        wholes=$((wholes + 1))
        must remove store other
        must gc store "${options[@]}"
    fi
done
must import other -o store "${options[@]}" --resume
must verify store
[ "$(digest store other)" = "$other" ] && [ "$(digest store base)" = "$base" ] || fail "import: after all kills the models are others"
stop_reading import
[ $partial -gt 0 ] || fail "no kill left a part of an import"
echo "import: $done_kills kills, $partial left an import to resume, $wholes finished in between"

# --- gc: one model in use, the other's payloads between its own

rm -rf store && cp -r whole store
start_reading store other
done_kills=0 finished=0
while [ $done_kills -lt "$kills" ]; do
    [ -z "$(digest store base)" ] || must remove store base
    draw $((gc_us * 3 / 2))
    if killed_after $drawn gc store "${options[@]}"; then
        done_kills=$((done_kills + 1))
        must verify store
        [ "$(digest store other)" = "$other" ] || fail "gc: kill $done_kills: other is another"
    else
        finished=$((finished + 1))
        must import base -o store "${options[@]}" # garbage for the next ones
        [ "$(digest store base)" = "$base" ] || fail "gc: base is another"
    fi
done
[ -z "$(digest store base)" ] || must remove store base
must gc store "${options[@]}"
must verify store
[ "$(digest store other)" = "$other" ] || fail "gc: after all kills other is another"
stop_reading gc
echo "gc: $done_kills kills, $finished finished in between"

# --- remove

rm -rf store && cp -r whole store
start_reading store base
done_kills=0 finished=0
while [ $done_kills -lt "$kills" ]; do
    [ -n "$(digest store other)" ] || must import other -o store "${options[@]}"
    draw 30000
    if killed_after $drawn remove store other; then
        done_kills=$((done_kills + 1))
        must verify store
    else
        finished=$((finished + 1))
        [ -z "$(digest store other)" ] || fail "remove: it said that it was done"
    fi
    [ "$(digest store base)" = "$base" ] || fail "remove: kill $done_kills: base is another"
    [ -z "$(digest store other)" ] || [ "$(digest store other)" = "$other" ] || fail "remove: other is another"
done
stop_reading remove
must verify store
echo "remove: $done_kills kills, $finished finished in between"

# --- two writers at once: both do it one after the other, or one is refused

for round in 1 2 3 4 5; do
    rm -rf both
    "$program" import base -o both "${options[@]}" >/dev/null 2>first.errors &
    first=$!
    "$program" import other -o both "${options[@]}" >/dev/null 2>second.errors &
    second=$!
    wait $first && one=0 || one=$?
    wait $second && two=0 || two=$?
    [ $one -eq 0 ] || grep -q "another process is writing" first.errors || fail "two writers: $(cat first.errors)"
    [ $two -eq 0 ] || grep -q "another process is writing" second.errors || fail "two writers: $(cat second.errors)"
    [ $one -eq 0 ] || [ $two -eq 0 ] || fail "two writers: both were refused"
    must verify both
done
echo "passed"
