#!/bin/sh
# Fuzz frames, CARs and records: tools/fuzz.sh SECONDS. First with planted bugs: each must be found within a minute.
set -eu
cd "$(dirname "$0")/.."

fuzz() {
    PYTHONPATH=tests .venv/bin/python -m fuzz.fuzz_frames "$@"
}

for bug in car type text; do
    folder=.fuzz/planted-$bug
    rm -rf "$folder"
    mkdir -p "$folder"
    code=0
    fuzz --seconds 60 --planted "$bug" --findings "$folder" >"$folder.log" 2>&1 || code=$?
    if [ "$code" != 1 ]; then
        tail -n 20 "$folder.log" >&2
        echo "fuzz: the planted bug '$bug' was not found (exit code $code)" >&2
        exit 1
    fi
    # What was found must be the planted bug, not one of our own.
    for file in "$folder"/*; do
        fuzz --replay "$file" || { echo "fuzz: $file breaks the code as it is" >&2; exit 1; }
    done
    echo "fuzz: planted bug '$bug': $(grep -a '^fuzz: found' "$folder.log" | cut -d' ' -f2-)"
done
fuzz --seconds "$1" --findings .fuzz
