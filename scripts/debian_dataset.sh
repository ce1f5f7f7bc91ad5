#!/bin/sh
# Puts the four files of Fashion-MNIST from Debian's package dataset-fashion-mnist into DIR, for --source-dir.
#   usage: sh scripts/debian_dataset.sh DIR
# As root it installs the package and links the files. As another user it unpacks the package and installs nothing.
# It serves machines that reach a Debian mirror and not the download server.
set -eu

package=dataset-fashion-mnist
installed=/usr/share/datasets/fashion-mnist
files="train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz"

fail() {
    echo "debian_dataset.sh: $1" >&2
    exit 1
}

has_all() {
    for file in $files; do
        [ -s "$1/$file" ] || return 1
    done
}

link_installed() {
    for file in $files; do
        ln -sf "$installed/$file" "$dir/$file"
    done
    echo "$dir: links to $installed ($package is installed)"
}

install_package() {
    # On a machine that has just started, another apt-get may hold the lock.
    set -- apt-get -o DPkg::Lock::Timeout=120 install -y "$package"
    "$@" || { apt-get update && "$@"; } ||
        fail "apt-get install $package failed; put the four files in a folder and pass --source-dir FOLDER"
}

# Downloads into the current folder. Containers may have no package lists: then it makes lists of its own.
download_package() {
    apt-get download "$package" && return
    mkdir -p state/lists/partial cache/archives/partial
    apt-get -o Dir::State="$PWD/state" -o Dir::Cache="$PWD/cache" update &&
        apt-get -o Dir::State="$PWD/state" -o Dir::Cache="$PWD/cache" download "$package"
}

unpack_package() {
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    (cd "$scratch" && download_package && dpkg-deb -x "$package"_*.deb unpacked) ||
        fail "apt-get download $package failed; put the four files in a folder and pass --source-dir FOLDER"
    for file in $files; do # the rename makes an interrupted copy no file of ours
        cp "$scratch/unpacked$installed/$file" "$dir/$file.part"
        mv "$dir/$file.part" "$dir/$file"
    done
    echo "$dir: unpacked from $package"
}

[ $# -eq 1 ] || fail "usage: sh scripts/debian_dataset.sh DIR"
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if has_all "$dir"; then
    echo "$dir: complete already"
    exit
fi
if ! has_all "$installed"; then
    command -v apt-get >/dev/null ||
        fail "no apt-get here; put $files in a folder and pass --source-dir FOLDER"
    [ "$(id -u)" -ne 0 ] || install_package
fi
if has_all "$installed"; then
    link_installed
else
    unpack_package
fi
