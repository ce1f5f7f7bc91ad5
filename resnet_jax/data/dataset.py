"""A data set as a value: arrays for training, validation and test, and what they mean."""

import dataclasses
import functools
import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from resnet_jax.errors import DataError

CHUNK = 1 << 22  # numbers converted to float64 at a time: 32 MB


class Arrays(NamedTuple):
    """One part of a data set. images: (N, H, W, C), uint8 or float32 in [0, 1]; labels: (N,) int32."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Images with labels. Build one with from_arrays, from_folder or load.

    validation, test: None where the data set has no such part. class_names[k] is the name of label k.
    known_mean_std: published values of mean and std, one number per channel; None: they are measured.
    The arrays are not copied, and mean, std and digest are computed once: do not change the arrays.
    Raises DataError if shapes, dtypes or labels are invalid. The pixel values are not read here.
    """

    train: Arrays
    validation: Arrays | None = None
    test: Arrays | None = None
    class_names: tuple[str, ...] = ()
    name: str = "images"
    known_mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        for part, arrays in self.parts.items():
            _check_part(part, arrays, self)

    @property
    def parts(self) -> dict[str, Arrays]:
        """The parts that the data set has, by name, train first."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: arrays for name, arrays in parts.items() if arrays is not None}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the training images per channel, with pixels scaled to [0, 1]."""
        return self._mean_std[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the training images per channel, with pixels scaled to [0, 1].

        It is 1 for a channel that is constant, so that (x - mean) / std stays finite.
        """
        return self._mean_std[1]

    @functools.cached_property
    def _mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.known_mean_std or measure_mean_std(self.train.images)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the class names and of the shape, dtype and bytes of every array."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for part, arrays in self.parts.items():
            for array in arrays:
                digest.update(f"{part} {array.shape} {array.dtype}".encode())
                for rows in chunks(array):
                    digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def class_counts(self) -> dict[str, tuple[int, ...]]:
        """The number of images of each class, for each part."""
        return {
            part: tuple(np.bincount(arrays.labels, minlength=self.num_classes).tolist())
            for part, arrays in self.parts.items()
        }

    def describe(self) -> str:
        """One line: the name, the number of images in each part, the image shape and the number of classes."""
        words = {"train": "training", "validation": "validation", "test": "test"}
        counts = [f"{len(arrays.labels)} {words[part]}" for part, arrays in self.parts.items()]
        text = " and ".join([", ".join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts)
        shape = "x".join(map(str, self.image_shape))
        return f"{self.name}: {text} images of {shape} in {self.num_classes} classes"

    def __repr__(self) -> str:
        return f"<ImageDataset {self.describe()}>"


def measure_mean_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (N, H, W, C) images scaled to [0, 1], in float64.

    The sums over uint8 pixels are exact: they are whole numbers below 2**53. A std of 0 becomes 1.
    """
    total = np.zeros(images.shape[-1])
    squares = np.zeros(images.shape[-1])
    for rows in chunks(images):
        x = rows.reshape(-1, images.shape[-1]).astype(np.float64)
        total += x.sum(0)
        squares += (x * x).sum(0)
    scale = 255 if images.dtype == np.uint8 else 1
    count = images.size // images.shape[-1]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / scale
    std[std < 1e-6] = 1  # rounding leaves up to 1e-8 of a constant channel
    return tuple((mean / scale).tolist()), tuple(std.tolist())


def check_class_names(names: tuple[str, ...]) -> None:
    """DataError unless `names` is a tuple of at least two different strings."""
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise DataError(f"class_names {names!r}: give a tuple of strings, one for each class")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"class_names holds {repeated[0]!r} more than once; give each class a name of its own")
    if len(names) < 2:
        raise DataError(f"class_names {names!r}: training needs at least two classes; add images of another class")


def _check_part(part: str, arrays: Arrays, data: ImageDataset) -> None:
    """DataError unless the part's shapes, dtypes and labels are valid and match the training part."""
    images, labels = arrays
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{part} images of shape {images.shape}: give (N, H, W, C) with C = 1 or 3 and no size 0")
    if images.dtype not in (np.uint8, np.float32):
        raise DataError(f"{part} images of {images.dtype}: give uint8, or float32 in [0, 1]; from_arrays converts")
    if labels.shape != (len(images),) or labels.dtype != np.int32:
        expected = f"({len(images)},) and int32"
        raise DataError(f"{part} labels of shape {labels.shape} and {labels.dtype}: give {expected}, one per image")
    check_label_range(f"{part} labels", labels, data.num_classes)
    train = data.train.images
    if images.shape[1:] != train.shape[1:] or images.dtype != train.dtype:
        found, expected = (f"{'x'.join(map(str, x.shape[1:]))} {x.dtype}" for x in (images, train))
        raise DataError(f"{part} images are {found}, but the training images are {expected}; convert one of them")


def check_label_range(what: str, labels: np.ndarray, num_classes: int) -> None:
    """DataError with the first label below 0, or not below num_classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        first = f"{what} holds {labels[wrong[0]]} at index {wrong[0]}"
        raise DataError(
            f"{first}: with {num_classes} classes, labels go from 0 to {num_classes - 1}; number the classes from 0"
        )


def chunks(array: np.ndarray) -> list[np.ndarray]:
    """`array` cut along its first axis into pieces of at most about CHUNK numbers."""
    rows = max(1, CHUNK * len(array) // max(array.size, 1))
    return [array[i : i + rows] for i in range(0, len(array), rows)]
