#!/bin/sh
# Builds the oneDNN kernels of native/ and installs them into a virtual environment, where this machine can:
#
#     scripts/native.sh FOLDER
#
# What it cannot (no compiler, not x86-64) it says in one line, and the XLA kernels serve. Done once for each state of
# native/ and of the packages.
set -eu

say() { printf '%s\n' "$*" >&2; }
skip() { say "native kernels: not built ($*); XLA's own serve, slower"; exit 0; }

cd "$(dirname "$0")/.."
python=$1/bin/python
made=$1/.native
state="$(find native -type f -not -path '*/__pycache__/*' -not -path '*/build/*' -print0 | sort -z | xargs -0 cat | cksum) $(cksum <"$1/.made")"
[ -e "$made" ] && [ "$(cat "$made")" = "$state" ] && exit 0

case "$(uname -sm)" in "Linux x86_64") ;; *) skip "this is $(uname -sm), not Linux x86_64" ;; esac
command -v "${CXX:-c++}" >/dev/null || skip "no C++ compiler; on Debian and Ubuntu: sudo apt-get install g++"

say "native kernels: building them (half a minute)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
pip() { "$python" -m pip install -q --no-input --disable-pip-version-check -c constraints.txt "$@" >"$log" 2>&1; }
# Against the very jax that is installed, so not in a build environment of its own.
if pip scikit-build-core cmake ninja onednn-cpu-gomp onednn-devel-cpu-gomp &&
    pip --no-build-isolation --no-deps --force-reinstall ./native; then
    printf '%s\n' "$state" >"$made"
else
    cat "$log" >&2
    skip "the build failed; what it says is above"
fi
