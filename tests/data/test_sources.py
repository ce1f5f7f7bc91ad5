import dataclasses
import gzip
import hashlib
import io
import socket
import struct
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_set import NAMES, assert_same, idx_contents, idx_labels, make_spec, make_splits, write_files

from resnet_jax.data.catalogue import obtain
from resnet_jax.data.sources import DownloadError, check_server, read_folder
from resnet_jax.data.specs import DatasetSpec, SourceFile
from resnet_jax.errors import DataError

SPLITS = make_splits()
CONTENTS = idx_contents(SPLITS)
SPEC = make_spec(CONTENTS)
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES


@pytest.mark.parametrize("level", [1, 9])
def test_any_recompression_gives_the_same_arrays(tmp_path, level):
    assert_same(read_folder(SPEC, write_files(tmp_path, CONTENTS, level)), SPLITS)


def test_the_header_of_debians_gzip_does_not_matter(tmp_path):
    """strip-nondeterminism drops the name and sets the time: other header, same content."""
    write_files(tmp_path, CONTENTS)
    with gzip.GzipFile("name inside", "wb", fileobj=(packed := io.BytesIO()), mtime=1_591_315_200) as stream:
        stream.write(CONTENTS[0])
    (tmp_path / TRAIN_IMAGES).write_bytes(packed.getvalue())
    assert_same(read_folder(SPEC, tmp_path), SPLITS)


def replace(name: str, blob: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(blob((folder / name).read_bytes()))


def repack(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return replace(name, lambda blob: gzip.compress(change(gzip.decompress(blob))))


BAD_FILES = {
    "missing": (lambda folder: (folder / TEST_IMAGES).unlink(), TEST_IMAGES, "is missing"),
    "folder": (
        lambda folder: [(folder / TEST_IMAGES).unlink(), (folder / TEST_IMAGES).mkdir()],
        TEST_IMAGES,
        "is missing",
    ),
    "truncated": (replace(TRAIN_IMAGES, lambda blob: blob[:-100]), TRAIN_IMAGES, "is truncated"),
    "empty": (replace(TRAIN_IMAGES, lambda blob: b""), TRAIN_IMAGES, "magic 0x "),
    "not gzip": (replace(TRAIN_LABELS, gzip.decompress), TRAIN_LABELS, "Not a gzipped file"),
    "bit flipped": (
        replace(TRAIN_LABELS, lambda blob: blob[:-6] + bytes([blob[-6] ^ 1]) + blob[-5:]),
        TRAIN_LABELS,
        "CRC check failed",
    ),
    "wrong magic": (repack(TRAIN_IMAGES, lambda idx: b"abcd" + idx[4:]), TRAIN_IMAGES, "no idx file"),
    "swapped": (
        lambda folder: (
            (folder / TRAIN_LABELS).replace(folder / TRAIN_IMAGES)
            and (folder / TRAIN_LABELS).write_bytes(gzip.compress(CONTENTS[0]))
        ),
        TRAIN_IMAGES,
        r"0x00000801 \(labels\), expected 0x00000803 \(images\)",
    ),
    "train and test swapped": (
        lambda folder: (
            (folder / TEST_LABELS).replace(folder / TRAIN_LABELS)
            and (folder / TEST_LABELS).write_bytes(gzip.compress(CONTENTS[1]))
        ),
        TRAIN_LABELS,
        "holds 10 labels, expected 40",
    ),
    "oversized": (
        repack(TEST_IMAGES, lambda idx: idx + bytes(10)),
        TEST_IMAGES,
        "more than 7856 bytes, expected 7856",
    ),
    "short": (repack(TEST_IMAGES, lambda idx: idx[:-5]), TEST_IMAGES, "unpacks to 7851 bytes, expected 7856"),
    "header only": (repack(TEST_IMAGES, lambda idx: idx[:9]), TEST_IMAGES, "unpacks to 9 bytes"),
    "counts differ": (
        repack(TRAIN_LABELS, lambda idx: struct.pack(">II", 0x801, 39) + idx[8:47]),
        TRAIN_LABELS,
        "holds 39 labels, expected 40",
    ),
    "wrong digest": (
        repack(TEST_IMAGES, lambda idx: idx[:-1] + bytes([idx[-1] ^ 1])),
        TEST_IMAGES,
        "sha256 .* expected .*another version leaks",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_in_one_line_and_nothing_is_written(tmp_path, case):
    spoil, name, message = BAD_FILES[case]
    folder = write_files(tmp_path / "files", CONTENTS)
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        obtain(SPEC, tmp_path / "data", folder, print)
    assert str(caught.value).startswith(str(folder / name))
    assert SPEC.url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    folder = write_files(tmp_path, CONTENTS)
    (folder / TRAIN_IMAGES).write_bytes(gzip.compress(CONTENTS[0] + bytes(50_000_000)))
    asked = []
    read = gzip.GzipFile.read

    def counted(stream: gzip.GzipFile, size: int = -1) -> bytes:
        asked.append(size)
        return read(stream, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(DataError, match="more than"):
        read_folder(SPEC, folder)
    assert asked == [len(CONTENTS[0]) + 1]


def test_a_label_out_of_range(tmp_path):
    contents = (CONTENTS[0], idx_labels(np.full(40, 10)), *CONTENTS[2:])
    with pytest.raises(DataError, match=rf"{TRAIN_LABELS} holds label 10, expected labels from 0 to 9"):
        read_folder(make_spec(contents), write_files(tmp_path, contents))


def test_a_source_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        read_folder(SPEC, tmp_path / "nowhere")


def test_without_known_digests_only_the_registered_files_will_do(tmp_path):
    spec = dataclasses.replace(SPEC, digests=None)
    assert_same(read_folder(spec, write_files(tmp_path, CONTENTS)), SPLITS)
    write_files(tmp_path, CONTENTS, level=0)
    with pytest.raises(DataError, match=rf"{TRAIN_IMAGES} has \d+ bytes, expected the official"):
        read_folder(spec, tmp_path)
    write_files(tmp_path, CONTENTS)
    replace(TEST_LABELS, lambda blob: blob[:9] + bytes([blob[9] ^ 1]) + blob[10:])(tmp_path)
    with pytest.raises(DataError, match=rf"{TEST_LABELS} has sha256"):
        read_folder(spec, tmp_path)


def make_cifar10(folder: Path, members: dict[str, bytes]) -> DatasetSpec:
    path = folder / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, blob in members.items():
            header = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            header.size = len(blob)
            archive.addfile(header, io.BytesIO(blob))
    return cifar10_spec(path)


def cifar10_spec(path: Path) -> DatasetSpec:
    file = SourceFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    return dataclasses.replace(SPEC, image_shape=(32, 32, 3), files=(file,), layout="cifar10", digests=None)


def cifar10_members() -> dict[str, bytes]:
    """Five batches of 8 images and one of 10: a label byte, then all red, all green, all blue bytes."""
    train, test = make_splits((32, 32, 3))
    records = [
        bytes([label]) + image[..., 0].tobytes() + image[..., 1].tobytes() + image[..., 2].tobytes()
        for split in (train, test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    batches = {f"data_batch_{i + 1}": b"".join(records[8 * i : 8 * i + 8]) for i in range(5)}
    return {**batches, "test_batch": b"".join(records[40:])}


def test_cifar10(tmp_path):
    spec = make_cifar10(tmp_path, cifar10_members())
    expected = make_splits((32, 32, 3))
    assert_same(read_folder(spec, tmp_path), expected)
    assert_same(obtain(spec, tmp_path / "data", tmp_path, print), expected)
    assert_same(obtain(spec, tmp_path / "data", None, print), expected)


def test_cifar10_bad_archives(tmp_path):
    members = cifar10_members()
    spec = make_cifar10(tmp_path, {**members, "test_batch": members["test_batch"][1:]})
    with pytest.raises(DataError, match=r"holds 30729 bytes in .*test_batch.bin, expected 30730"):
        read_folder(spec, tmp_path)
    spec = make_cifar10(tmp_path, {**members, "data_batch_2": b"\x0a" + members["data_batch_2"][1:]})
    with pytest.raises(DataError, match="holds label 10"):
        read_folder(spec, tmp_path)
    del members["data_batch_3"]
    with pytest.raises(DataError, match=r"data_batch_3\.bin"):
        read_folder(make_cifar10(tmp_path, members), tmp_path)
    path = tmp_path / spec.files[0].name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_folder(cifar10_spec(path), tmp_path)


def test_a_refused_connection():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    message = rf"cannot download small from http://127.0.0.1:{port}/: cannot connect .*{TEST_LABELS} in a folder"
    with pytest.raises(DownloadError, match=message + " and pass --source-dir .* apt-get install dataset-small"):
        check_server(make_spec(CONTENTS, f"http://127.0.0.1:{port}/"), 10)


def test_a_server_without_the_file(web):
    with pytest.raises(DownloadError, match="the server answers 404"):
        check_server(make_spec(CONTENTS, web[0]), 10)


def test_a_server_that_sends_nothing(web):
    url, folder = web
    (folder / TRAIN_IMAGES).touch()
    with pytest.raises(DownloadError, match="the server sends nothing"):
        check_server(make_spec(CONTENTS, url), 10)


def test_a_server_that_accepts_and_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(DownloadError, match=r"no answer within 0\.3 s"):
            check_server(make_spec(CONTENTS, url), 0.3)


def test_a_server_that_trickles_its_headers():
    """Each byte comes in time for the timeout of requests, the answer never does."""
    stop = threading.Event()

    def trickle(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=trickle, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        try:
            with pytest.raises(DownloadError, match=r"no answer within 0\.5 s"):
                check_server(make_spec(CONTENTS, url), 0.5)
        finally:
            stop.set()
            thread.join()


def test_a_name_server_that_never_answers(monkeypatch):
    over = threading.Event()

    def hang(*args: object, **kwargs: object) -> None:
        over.wait()
        raise socket.gaierror("given up")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with pytest.raises(DownloadError, match=r"no answer within 0\.3 s"):
            check_server(make_spec(CONTENTS, "http://data.invalid/"), 0.3)
    finally:
        over.set()
