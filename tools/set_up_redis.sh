#!/bin/sh
# Sees to it that redis-server is there, which tests/test_fleet.py starts.
set -eu
missing() { ! command -v redis-server >/dev/null 2>&1; }

missing || exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "Installing redis-server, for the test of a store that machines share ..."
    apt-get update -q >/dev/null || true # what is known of packages may do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends redis-server >/dev/null || true
fi
if missing; then
    echo "No redis-server on the PATH: the test of a store that machines share needs it. On Debian, as root: apt-get install redis-server" >&2
    exit 1
fi
