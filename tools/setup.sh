#!/bin/sh
# Make the environment in .venv: tools/setup.sh demo|test|fuzz|image. Asks for nothing; names what it could not do in one line.
set -eu
cd "$(dirname "$0")/.."

# Install a Debian package if we may; otherwise say which one is missing.
debian() {
    if ! command -v apt-get >/dev/null; then
        echo "setup: please install what Debian calls $1" >&2
        return 1
    fi
    if [ "$(id -u)" = 0 ]; then as=''; elif sudo -n true 2>/dev/null; then as='sudo -n'; else
        echo "setup: please install $1: sudo apt-get install $1" >&2
        return 1
    fi
    echo "setup: installing $1" >&2
    [ -n "${updated-}" ] || $as apt-get update -qq >/dev/null 2>&1 || true
    updated=yes
    $as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

# Prometheus' checker alone, out of Debian's package: to install that would start a server.
checker() {
    if [ -x .venv/bin/promtool ] || command -v promtool >/dev/null; then return; fi
    echo "setup: fetching promtool" >&2
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "setup: please put promtool into the PATH (Debian: prometheus)" >&2
        return 1
    fi
    mkdir -p .setup/promtool
    if [ "$(id -u)" = 0 ]; then apt-get update -qq >/dev/null 2>&1 || true; fi
    (cd .setup/promtool && apt-get download -qq -o APT::Sandbox::User=root prometheus >/dev/null && dpkg-deb -x prometheus_*.deb .) || return 1
    cp .setup/promtool/usr/bin/promtool .venv/bin/promtool
    rm -rf .setup/promtool
}

find_python() {
    for python in python3.11 python3 python3.12 python3.13; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "setup: Python 3.11 or newer is needed: sudo apt-get install python3" >&2
    exit 1
}

make_venv() {
    [ -x .venv/bin/python ] && return
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || debian python3-venv || exit 1
    echo "setup: making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv
}

pip() {
    .venv/bin/python -m pip --quiet --disable-pip-version-check install "$@"
}

# Each list once, unless it changed.
list() {
    stamp=.venv/.installed-$1
    file=requirements/$1.txt
    shift
    cmp -s "$file" "$stamp" && return
    echo "setup: installing $file" >&2
    pip --require-hashes --no-compile "$@" -r "$file"
    cp "$file" "$stamp"
}

# What lists brought, compiled by all processors, without its own tests; pip would use one, for a third more.
compiled() {
    stamp=.venv/.compiled
    [ -e "$stamp" ] && [ -z "$(find .venv -maxdepth 1 -name '.installed-*' -not -name '*-civicsky' -newer "$stamp" -print -quit)" ] && return
    .venv/bin/python -m compileall -q -j 0 -x '/tests?/' .venv/lib >/dev/null 2>&1 || true # some packages bring code for other versions
    touch "$stamp"
}

package() {
    stamp=.venv/.installed-civicsky
    [ -e "$stamp" ] && [ -z "$(find service pyproject.toml README.md LICENSE -newer "$stamp" -not -name '*.pyc' -print -quit)" ] && return
    echo "setup: installing civicsky" >&2
    pip --no-build-isolation --no-deps --force-reinstall .
    touch "$stamp"
}

# What the local model's engine is linked with; a compiler brings it, a slim system lacks it.
engine() {
    ldconfig -p | grep -q 'libgomp\.so\.1' || debian libgomp1 || true
}

# What tests need of Debian, and what is as large as all the rest: most of it is waiting for the network.
beside_tests() {
    list mongod --no-deps
    list axe --no-deps
    list model --no-deps
    engine
    command -v crontab >/dev/null || debian cron || true
    checker || true
    command -v shellcheck >/dev/null || debian shellcheck || true
    command -v systemd-analyze >/dev/null || debian systemd || true
    command -v faketime >/dev/null || debian faketime || true
    command -v dbus-daemon >/dev/null || debian dbus-daemon || true
    command -v nsenter >/dev/null || debian util-linux || true
    ldconfig -p | grep -q 'libcurl\.so\.4' || debian libcurl4 || true
    command -v nats-server >/dev/null || debian nats-server || true
    command -v ip >/dev/null || debian iproute2 || true
    command -v jq >/dev/null || debian jq || true
    command -v chromium >/dev/null || command -v google-chrome >/dev/null || debian chromium || true
}

make_venv
list build
case "$1" in
    demo)
        list local
        list fast
        list model --no-deps
        engine
        ;;
    test)
        beside_tests &
        beside=$!
        trap 'wait' EXIT # nothing goes on behind one who was told of a failure
        list dev
        wait "$beside"
        ;;
    fuzz)
        list base
        list fuzz
        ;;
    image)
        list dev
        command -v mmdebstrap >/dev/null || debian mmdebstrap || true
        ;;
    *) echo "usage: tools/setup.sh demo|test|fuzz|image" >&2; exit 2 ;;
esac
compiled
package
