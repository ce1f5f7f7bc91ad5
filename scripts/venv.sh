#!/bin/sh
# Makes a virtual environment and installs this project into it, at the versions of constraints.txt:
#
#     scripts/venv.sh FOLDER [EXTRA...]        scripts/venv.sh .venv here dev
#
# An EXTRA is one of pyproject.toml's; "here" stands for the one that this machine's accelerator needs, if it has any.
# PYTHON names the interpreter. Where all is in place it does nothing; what was interrupted is made anew; of two calls at
# once the second waits. Neither git nor a compiler is needed, and no root: on Debian and Ubuntu it gets pip by itself.
set -eu

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Runs a command that talks too much: its output is shown only where it fails.
quietly() {
    "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; return 1; }
}

# 3.15 and later have no wheels of the pinned versions.
suitable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
}

find_python() {
    for name in python3 python3.13 python3.12 python3.11 python3.14; do
        if suitable "$name"; then
            command -v "$name"
            return
        fi
    done
    die "no Python 3.11 to 3.14 found on the PATH; install one, or name it: make PYTHON=/path/to/python3.12"
}

same_version() {
    [ "$("$1" -c "$version_code")" = "$("$2" -c "$version_code")" ]
}
version_code='import sys; print(*sys.version_info[:2], sep=".")'

# The extra that this machine's accelerator needs, or nothing. The numbers are the TPUs among Google's PCI devices.
accelerator_extra() {
    if nvidia-smi -L >/dev/null 2>&1; then
        echo cuda
        return
    fi
    for pci in /sys/bus/pci/devices/*; do
        case "$(cat "$pci/vendor" "$pci/device" 2>/dev/null | tr '\n' ' ')" in
            "0x1ae0 0x0027 " | "0x1ae0 0x0056 " | "0x1ae0 0x005e " | "0x1ae0 0x0062 " | "0x1ae0 0x0063 " | \
                "0x1ae0 0x006f " | "0x1ae0 0x0076 ")
                echo tpu
                return
                ;;
        esac
    done
}

install_debian_venv() {
    set -- env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y "$1"
    "$@" || { apt-get update && "$@"; }
}

# Into the current folder; where the package lists are missing or old, with lists of our own.
download_debian_pip() {
    apt-get download python3-pip-whl && return
    mkdir -p lists/partial cache/archives/partial
    set -- -o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD/cache"
    apt-get "$@" update && apt-get "$@" download python3-pip-whl
}

# Prints the path of a wheel of pip: one that Debian has put on this machine, or one out of Debian's package.
pip_wheel() {
    if command -v apt-get >/dev/null && ! ls /usr/share/python-wheels/pip-*.whl >/dev/null 2>&1; then
        say "pip: taking it from Debian's package python3-pip-whl"
        (cd "$scratch" && quietly download_debian_pip && dpkg-deb -x python3-pip-whl_*.deb .) || :
    fi
    for wheel in /usr/share/python-wheels/pip-*.whl "$scratch"/usr/share/python-wheels/pip-*.whl; do
        if [ -e "$wheel" ]; then
            echo "$wheel"
            return
        fi
    done
    die "$1 has neither ensurepip nor pip; install them (Debian, Ubuntu: sudo apt-get install $2)"
}

has_ensurepip() { "$1" -c 'import ensurepip' 2>/dev/null; }

create() {
    if [ -e "$folder" ] && [ ! -e "$folder/pyvenv.cfg" ] && [ ! -e "$folder/.unfinished" ]; then
        die "$folder is there and is no virtual environment; move it away"
    fi
    python=${PYTHON:-$(find_python)}
    debian_package=python$("$python" -c "$version_code")-venv
    say "$folder: a virtual environment with $("$python" -V) ($python)"
    rm -rf "$folder"
    mkdir "$folder"
    : >"$folder/.unfinished"
    if ! has_ensurepip "$python" && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "$debian_package: installing it with apt-get"
        quietly install_debian_venv "$debian_package" || say "$debian_package: could not be installed; trying without"
    fi
    if has_ensurepip "$python"; then
        quietly "$python" -m venv "$folder"
    else
        wheel=$(pip_wheel "$python" "$debian_package")
        quietly "$python" -m venv --without-pip "$folder"
        quietly env PYTHONPATH="$wheel" "$folder/bin/python" -m pip install --no-index "$wheel"
    fi
}

usable() {
    [ ! -e "$folder/.unfinished" ] && suitable "$folder/bin/python" &&
        { [ -z "${PYTHON:-}" ] || same_version "$PYTHON" "$folder/bin/python"; }
}

[ $# -gt 0 ] || die "usage: scripts/venv.sh FOLDER [EXTRA...]"
[ -z "${PYTHON:-}" ] || suitable "$PYTHON" || die "PYTHON=$PYTHON does not run or is not Python 3.11 to 3.14"
cd "$(dirname "$0")/.."
folder=$1
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM HUP

exec 9<.
if command -v flock >/dev/null && ! flock -n 9; then
    say "$folder: another set-up is at work here; waiting for it"
    flock 9
fi

extras=
for extra in "$@"; do
    [ "$extra" = here ] && extra=$(accelerator_extra)
    extras="$extras $extra"
done

# .made tells what has been installed: the sum of the files that decide it, the place, then the extras, one a line.
made=$folder/.made
source="$(cat pyproject.toml constraints.txt | cksum) $PWD"
if usable; then
    if [ -e "$made" ]; then
        extras="$extras $(sed 1d "$made" | tr '\n' ' ')"
    elif ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        create
    fi
else
    create
fi
# shellcheck disable=SC2086  # one word an extra
wanted=$(printf '%s\n' "$source" && printf '%s\n' $extras | sort -u | sed '/^$/d')
[ -e "$made" ] && [ "$(cat "$made")" = "$wanted" ] && exit 0

list=$(printf '%s\n' "$wanted" | sed 1d | paste -s -d , -)
case ",$list," in
    *,cuda,*) for_what="with JAX for NVIDIA GPUs (CUDA 12)" ;;
    *,accelerators,*) for_what="with the compilers for TPUs and NVIDIA GPUs (1 GB)" ;;
    *,tpu,*) for_what="with JAX for TPUs" ;;
    *) for_what="with JAX for the CPU" ;;
esac
say "$folder: installing the packages $for_what (1 to 3 minutes the first time)"
: >"$folder/.unfinished"
rm -f "$made"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$folder/bin/python" -m pip install -qq --no-input -c constraints.txt -e ".${list:+[$list]}" ||
    die "the packages could not be installed; what pip says is above"
printf '%s\n' "$wanted" >"$made"
rm "$folder/.unfinished"
