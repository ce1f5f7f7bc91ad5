#!/bin/sh
# Builds the oneDNN kernels of native/ and installs them into a virtual environment:
#
#     scripts/native.sh FOLDER [CONSTRAINTS]
#
# CONSTRAINTS is the file with the versions of the build tools (default: constraints.txt); "none" takes the newest.
# On a machine that cannot build them (no C++ compiler, not x86-64), the script says so in one line and exits with 0:
# the XLA kernels need no build. It builds again only when native/, the constraints, Python or jaxlib change.
set -eu

say() { printf '%s\n' "$*" >&2; }
skip() { say "native kernels: not built ($*); the slower XLA kernels are used instead"; exit 0; }

cd "$(dirname "$0")/.."
python=$1/bin/python
constraints=${2:-constraints.txt}
made=$1/.native
sources=$(find native -type f -not -path '*/__pycache__/*' -not -path '*/build/*' -print0 | sort -z | xargs -0 cat | cksum)
versions=$("$python" -c 'import sys, importlib.metadata as m; print(*sys.version_info[:2], m.version("jaxlib"))')
if [ "$constraints" = none ]; then
    set --
    state="$sources $versions"
else
    set -- -c "$constraints"
    state="$sources $versions $(cksum <"$constraints")"
fi
[ -e "$made" ] && [ "$(cat "$made")" = "$state" ] && exit 0

case "$(uname -sm)" in "Linux x86_64") ;; *) skip "this is $(uname -sm), not Linux x86_64" ;; esac
command -v "${CXX:-c++}" >/dev/null || skip "no C++ compiler; on Debian and Ubuntu: sudo apt-get install g++"

say "native kernels: building them (half a minute)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
pip() { "$python" -m pip install -q --no-input --disable-pip-version-check "$@" >"$log" 2>&1; }
# The build uses the headers of the installed jaxlib, so it has no build environment of its own.
if pip "$@" scikit-build-core cmake ninja onednn-cpu-gomp onednn-devel-cpu-gomp &&
    pip "$@" --no-build-isolation --no-deps --force-reinstall ./native; then
    printf '%s\n' "$state" >"$made"
else
    cat "$log" >&2
    skip "the build failed; its messages are above"
fi
