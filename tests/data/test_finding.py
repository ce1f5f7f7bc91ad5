"""The files of a data set as people have them: unpacked, in torchvision's folders, of another data set."""

import dataclasses
import gzip
from pathlib import Path

import pytest
from small_set import NAMES, assert_same, idx_contents, make_spec, make_splits, write_files

from resnet_jax.data import DATASETS
from resnet_jax.data.catalogue import obtain
from resnet_jax.data.sources import read_folder
from resnet_jax.errors import DataError

SPLITS = make_splits()
CONTENTS = idx_contents(SPLITS)
SPEC = dataclasses.replace(make_spec(CONTENTS), name="fashion_mnist")
PLAIN = tuple(name.removesuffix(".gz") for name in NAMES)
DOTTED = tuple(name.replace("-idx", ".idx") for name in PLAIN)


def write_plain(folder: Path, names: tuple[str, ...] = PLAIN, contents: tuple[bytes, ...] = CONTENTS) -> Path:
    for name, content in zip(names, contents, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_both(folder: Path) -> Path:
    return write_plain(write_files(folder, CONTENTS))


UNPACKED = " (unpacked idx files)"
# how the files lie below the folder that is given: (write them, the folder that the log names)
LAYOUTS = {
    "unpacked": (write_plain, UNPACKED),
    "with a dot": (lambda folder: write_plain(folder, DOTTED), UNPACKED),
    "packed, with a dot": (
        lambda folder: write_plain(folder, tuple(f"{name}.gz" for name in DOTTED), tuple(map(gzip.compress, CONTENTS))),
        "",
    ),
    "packed under unpacked names": (
        lambda folder: write_plain(folder, PLAIN, tuple(map(gzip.compress, CONTENTS))),
        UNPACKED,
    ),
    "a folder for each file": (
        lambda folder: write_plain(folder, tuple(f"{name}/{name}" for name in DOTTED)),
        UNPACKED,
    ),
    "some packed": (
        lambda folder: (write_both(folder), [(folder / name).unlink() for name in (NAMES[0], PLAIN[1])]),
        UNPACKED,
    ),
    "torchvision's root": (lambda folder: write_both(folder / "FashionMNIST" / "raw"), "/FashionMNIST/raw"),
    "torchvision's folder": (lambda folder: write_plain(folder / "raw"), f"/raw{UNPACKED}"),
    "beside MNIST": (
        lambda folder: (write_plain(folder / "MNIST" / "raw"), write_plain(folder / "FashionMNIST" / "raw")),
        f"/FashionMNIST/raw{UNPACKED}",
    ),
    "of Keras": (lambda folder: write_files(folder / "fashion-mnist", CONTENTS), "/fashion-mnist"),
    "its own name": (lambda folder: write_plain(folder / "fashion_mnist"), f"/fashion_mnist{UNPACKED}"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_files_are_found_and_the_log_names_them(tmp_path, case):
    """Issue 11, case 14."""
    write, place = LAYOUTS[case]
    write(tmp_path / "given")
    lines: list[str] = []
    assert_same(obtain(SPEC, tmp_path / "data", tmp_path / "given", lines.append), SPLITS)
    assert len(lines) == 1
    assert f"from {tmp_path}/given{place}, in {tmp_path}/data" in lines[0]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


WRONG = {
    "a flipped bit": ((CONTENTS[0], CONTENTS[1], flipped(CONTENTS[2]), CONTENTS[3]), f"{PLAIN[2]} has sha256 .* leaks"),
    "truncated": ((CONTENTS[0][:-9], *CONTENTS[1:]), f"{PLAIN[0]} has 31367 bytes, expected 31376"),
    "empty": ((b"", *CONTENTS[1:]), f"{PLAIN[0]} has magic 0x "),
    "too long": ((CONTENTS[0] + b"x", *CONTENTS[1:]), f"{PLAIN[0]} has more than 31376 bytes"),
    "swapped": ((CONTENTS[1], CONTENTS[0], *CONTENTS[2:]), rf"{PLAIN[0]} has magic 0x00000801 \(labels\)"),
    "no idx file": ((CONTENTS[0], b"<html>", *CONTENTS[2:]), rf"{PLAIN[1]} has magic 0x3c68746d \(no idx file\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_unpacked_files_are_checked_as_packed_ones(tmp_path, case):
    contents, message = WRONG[case]
    write_plain(tmp_path / "files", contents=contents)
    with pytest.raises(DataError, match=message) as caught:
        obtain(SPEC, tmp_path / "data", tmp_path / "files", print)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.fixture
def other(monkeypatch):
    """MNIST's entry of the table, with other contents of the same form."""
    contents = (flipped(CONTENTS[0]), CONTENTS[1], CONTENTS[2], CONTENTS[3])
    spec = dataclasses.replace(make_spec(contents), name="mnist")
    monkeypatch.setitem(DATASETS, "mnist", spec)
    return contents


@pytest.mark.parametrize("write", [write_plain, write_files])
@pytest.mark.parametrize("known", [True, False], ids=["known digests", "registered files only"])
def test_files_of_another_data_set_are_named(tmp_path, other, write, known):
    write(tmp_path, contents=other)
    spec = SPEC if known else dataclasses.replace(SPEC, digests=None)
    with pytest.raises(DataError, match=f"{PLAIN[0]}.* belongs to mnist, not to fashion_mnist; pass --dataset mnist"):
        read_folder(spec, tmp_path)


def test_a_folder_of_another_data_set_is_named(tmp_path):
    write_plain(tmp_path / "MNIST" / "raw")
    with pytest.raises(DataError, match=rf"{NAMES[0]} is missing \(the folder holds MNIST/raw, which is mnist: --data"):
        read_folder(SPEC, tmp_path)
    (tmp_path / "MNIST" / "raw" / PLAIN[2]).unlink()
    with pytest.raises(DataError, match=f"{tmp_path}/MNIST/raw/{NAMES[2]} is missing; "):
        read_folder(dataclasses.replace(SPEC, name="mnist"), tmp_path)


def test_unpacked_files_without_a_known_digest_are_refused(tmp_path):
    """Their packed form beside them is used."""
    spec = dataclasses.replace(SPEC, digests=None)
    write_plain(tmp_path)
    with pytest.raises(DataError, match=f"{PLAIN[0]} cannot be verified: .* put {NAMES[0]} from .* beside it"):
        read_folder(spec, tmp_path)
    assert_same(read_folder(spec, write_files(tmp_path, CONTENTS)), SPLITS)


@pytest.mark.parametrize("name", DATASETS["cifar10"].unread)
def test_other_forms_of_cifar10_are_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=rf"cifar-10-binary.tar.gz is missing \(the folder holds {name}, which is not"):
        read_folder(DATASETS["cifar10"], tmp_path)
