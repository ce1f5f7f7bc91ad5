#!/bin/sh
# Makes a virtual environment and installs this project into it:
#
#     scripts/venv.sh [-c CONSTRAINTS] [-p VERSION] FOLDER [EXTRA...]
#     scripts/venv.sh .venv here dev
#
#   -c CONSTRAINTS  the file with the versions to install (default: constraints.txt); "none" installs the newest versions
#   -p VERSION      the Python version to look for: 3.13, or "newest" (default: python3 if it is 3.11 to 3.14, else any)
#   EXTRA           an extra of pyproject.toml; "here" stands for the extra that this machine's accelerator needs, if any
#
# The environment variable PYTHON names the interpreter and overrides -p.
# A finished environment is left as it is, except that "-c none" asks the registry for newer versions each time.
# An interrupted one is made again. A second call at the same time waits for the first.
# The script needs neither git nor a compiler nor root. On Debian and Ubuntu it gets pip by itself.
set -eu

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Runs a command and shows its output only if it fails.
quietly() {
    "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; return 1; }
}

# Python 3.15 and later have no wheels of the pinned versions.
suitable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
}

# Prints the version of an interpreter, such as 3.13. It fails if the interpreter does not run.
version_of() {
    "$1" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null
}

# Of each version, tries the PATH first, then what pyenv has installed without activating it.
find_python() {
    case $version in
        "")
            if suitable python3; then
                command -v python3
                return
            fi
            set -- 3.13 3.12 3.11 3.14
            ;;
        newest) set -- 3.14 3.13 3.12 3.11 ;;
        *) set -- "$version" ;;
    esac
    for wanted in "$@"; do
        for name in "python$wanted" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$wanted".*/bin/python3; do
            if [ "$(version_of "$name")" = "$wanted" ]; then
                command -v "$name"
                return
            fi
        done
    done
    die "no Python $(echo "$*" | sed 's/ / or /g') found on the PATH or in pyenv; install it, or name one: PYTHON=/path/to/python3.12"
}

# Prints the extra that this machine's accelerator needs, or nothing. The numbers are the TPUs among Google's PCI devices.
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

# Downloads into the current folder. If the machine's package lists are missing or old, it makes lists of its own.
download_debian_pip() {
    apt-get download python3-pip-whl && return
    mkdir -p lists/partial cache/archives/partial
    set -- -o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD/cache"
    apt-get "$@" update && apt-get "$@" download python3-pip-whl
}

# Prints the path of a wheel of pip: the one that Debian has installed, or one unpacked from Debian's package.
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
        die "$folder exists and is not a virtual environment; move it away"
    fi
    python=${PYTHON:-$(find_python)}
    debian_package=python$(version_of "$python")-venv
    say "$folder: making a virtual environment with $("$python" -V) ($python)"
    rm -rf "$folder"
    mkdir "$folder"
    : >"$folder/.unfinished"
    if ! has_ensurepip "$python" && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "$debian_package: installing it with apt-get"
        quietly install_debian_venv "$debian_package" || say "$debian_package: apt-get failed; trying without it"
    fi
    if has_ensurepip "$python"; then
        quietly "$python" -m venv "$folder"
    else
        wheel=$(pip_wheel "$python" "$debian_package")
        quietly "$python" -m venv --without-pip "$folder"
        quietly env PYTHONPATH="$wheel" "$folder/bin/python" -m pip install --no-index "$wheel"
    fi
}

# Whether the folder holds a finished environment of the Python that was asked for.
usable() {
    [ ! -e "$folder/.unfinished" ] && suitable "$folder/bin/python" || return 1
    if [ -n "${PYTHON:-}" ]; then
        [ "$(version_of "$PYTHON")" = "$(version_of "$folder/bin/python")" ]
    else
        case $version in "" | newest | "$(version_of "$folder/bin/python")") ;; *) return 1 ;; esac
    fi
}

usage="usage: scripts/venv.sh [-c CONSTRAINTS] [-p VERSION] FOLDER [EXTRA...]"
constraints=constraints.txt
version=
while getopts c:p: option; do
    case $option in
        c) constraints=$OPTARG ;;
        p) version=$OPTARG ;;
        *) die "$usage" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || die "$usage"
[ -z "${PYTHON:-}" ] || suitable "$PYTHON" || die "PYTHON=$PYTHON does not run or is not Python 3.11 to 3.14"
cd "$(dirname "$0")/.."
[ "$constraints" = none ] || [ -r "$constraints" ] || die "-c $constraints: there is no such file"
folder=$1
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM HUP

exec 9<.
if command -v flock >/dev/null && ! flock -n 9; then
    say "$folder: waiting for another set-up in this checkout"
    flock 9
fi

extras=
for extra in "$@"; do
    [ "$extra" = here ] && extra=$(accelerator_extra)
    extras="$extras $extra"
done

# .made records what is installed: first a checksum of the files that decide it and the path, then one extra a line.
made=$folder/.made
if [ "$constraints" = none ]; then
    files=pyproject.toml
else
    files="pyproject.toml $constraints"
fi
# shellcheck disable=SC2086  # one word for each file
source="$(cat $files | cksum) $PWD"
if usable; then
    if [ -e "$made" ]; then
        extras="$extras $(sed 1d "$made" | tr '\n' ' ')"
    elif ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        create
    fi
else
    create
fi
# shellcheck disable=SC2086  # one word for each extra
wanted=$(printf '%s\n' "$source" && printf '%s\n' $extras | sort -u | sed '/^$/d')
[ "$constraints" != none ] && [ -e "$made" ] && [ "$(cat "$made")" = "$wanted" ] && exit 0

list=$(printf '%s\n' "$wanted" | sed 1d | paste -s -d , -)
case ",$list," in
    *,cuda,*) for_what="with JAX for NVIDIA GPUs (CUDA 12)" ;;
    *,accelerators,*) for_what="with the compilers for TPUs and NVIDIA GPUs (1 GB)" ;;
    *,tpu,*) for_what="with JAX for TPUs" ;;
    *) for_what="with JAX for the CPU" ;;
esac
if [ "$constraints" = none ]; then
    say "$folder: installing the newest packages $for_what (1 to 3 minutes the first time)"
    set -- --upgrade --upgrade-strategy eager
else
    say "$folder: installing the packages of $constraints $for_what (1 to 3 minutes the first time)"
    set -- -c "$constraints"
fi
: >"$folder/.unfinished"
rm -f "$made"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$folder/bin/python" -m pip install -qq --no-input "$@" -e ".${list:+[$list]}" ||
    die "pip could not install the packages; its messages are above"
printf '%s\n' "$wanted" >"$made"
rm "$folder/.unfinished"
