#!/bin/sh
# What `make check` checks; the types, which take as long as all else, beside the rest. Each prints for itself.
set -eu
cd "$(dirname "$0")/.."

types=$(mktemp)
.venv/bin/mypy >"$types" 2>&1 &
mypy=$!
trap 'kill "$mypy" 2>/dev/null || :; rm -f "$types"' EXIT

failed=''
check() {
    echo "$@"
    "$@" || failed="$failed $1"
}
check .venv/bin/ruff check .
check .venv/bin/ruff format --check .
check .venv/bin/lint-imports
check .venv/bin/pytest -q -n 2 tests/docs
echo .venv/bin/mypy
wait "$mypy" || failed="$failed .venv/bin/mypy"
cat "$types"
[ -z "$failed" ] || { echo "check: failed:$failed" >&2; exit 1; }
