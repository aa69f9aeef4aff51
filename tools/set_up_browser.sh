#!/bin/sh
# Sees to it that chromium and chromedriver are there, in which tests/test_report_html.py opens reports.
set -eu
missing() { ! command -v chromium >/dev/null 2>&1 || ! command -v chromedriver >/dev/null 2>&1; }

missing || exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "Installing chromium and chromium-driver, for the tests of the HTML report ..."
    apt-get update -q >/dev/null || true # what is known of packages may do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium chromium-driver >/dev/null || true
fi
if missing; then
    echo "No chromium and chromedriver on the PATH: the tests of the HTML report need both. On Debian, as root: apt-get install chromium chromium-driver" >&2
    exit 1
fi
