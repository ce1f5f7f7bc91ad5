#!/bin/sh
# Makes sure that Debian's Chromium is there, for the tests of pages (make test-browser).
#   usage: sh scripts/chromium.sh
# As root it installs the package; another user gets a line that says what to install.
set -eu

command -v chromium >/dev/null && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "chromium.sh: there is no chromium on the PATH; install it (Debian: sudo apt-get install chromium)" >&2
    exit 1
fi
# On a machine that has just started, another apt-get may hold the lock.
set -- env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends chromium
"$@" || { apt-get update && "$@"; }
