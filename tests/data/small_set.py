"""A data set of 40 training and 10 test images made here, with the files and digests of an official one."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np

from resnet_jax.data.dataset import Arrays
from resnet_jax.data.specs import DatasetSpec, Digests, SourceFile, Splits

NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def make_splits(shape: tuple[int, int, int] = (28, 28, 1)) -> Splits:
    rng = np.random.default_rng(0)

    def arrays(count: int) -> Arrays:
        images = rng.integers(0, 256, (count, *shape), np.uint8)
        return Arrays(images, np.arange(count, dtype=np.int32) % 10)

    return Splits(arrays(40), arrays(10))


def idx_images(images: np.ndarray) -> bytes:
    return struct.pack(">IIII", 0x803, len(images), 28, 28) + images.tobytes()


def idx_labels(labels: np.ndarray) -> bytes:
    return struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()


def idx_contents(splits: Splits) -> tuple[bytes, bytes, bytes, bytes]:
    (train_images, train_labels), (test_images, test_labels) = splits
    return (
        idx_images(train_images),
        idx_labels(train_labels),
        idx_images(test_images),
        idx_labels(test_labels),
    )


def make_spec(contents: tuple[bytes, ...], url: str = "http://127.0.0.1:9/") -> DatasetSpec:
    """The spec of a server that holds gzip.compress(content, mtime=0) of each."""
    packed = [gzip.compress(content, mtime=0) for content in contents]
    files = tuple(
        SourceFile(name, len(blob), hashlib.sha256(blob).hexdigest()) for name, blob in zip(NAMES, packed, strict=True)
    )
    return DatasetSpec(
        name="small",
        image_shape=(28, 28, 1),
        class_names=tuple("abcdefghij"),
        num_train=40,
        num_test=10,
        url=url,
        files=files,
        layout="idx",
        digests=Digests(*(hashlib.sha256(content).hexdigest() for content in contents)),
        debian_package="dataset-small",
        digest_hint="another version leaks",
    )


def write_files(folder: Path, contents: tuple[bytes, ...], level: int = 9) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(NAMES, contents, strict=True):
        (folder / name).write_bytes(gzip.compress(content, level, mtime=0))
    return folder


def assert_same(found: Splits, expected: Splits) -> None:
    for split, want in zip(found, expected, strict=True):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(split.images, want.images, strict=True)
        np.testing.assert_array_equal(split.labels, want.labels, strict=True)
