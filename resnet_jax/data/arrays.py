"""ImageDataset from arrays in memory, or from an iterable of images with labels."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.data import split
from resnet_jax.data.dataset import Arrays, ImageDataset, check_class_names, check_label_range, chunks
from resnet_jax.errors import DataError, one_line

IMAGE_KEYS = ("image", "img")
FORM = "(N, H, W) or (N, H, W, C) with C = 1 or 3"


def from_arrays(
    images: Any,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    validation: Any = 0,
    test: Any = 0,
    seed: int = 0,
    name: str = "arrays",
) -> ImageDataset:
    """A data set of `images` and `labels`: NumPy arrays or anything that NumPy can read (JAX, PyTorch, lists).

    images: (N, H, W) or (N, H, W, C) with C = 1 or 3; integers from 0 to 255, or floats in [0, 1].
        Without `labels`: an iterable of {"image" or "img": ..., "label": ...} (Hugging Face, TFDS) or of
        (image, label) pairs (torchvision). Its images are arrays or Pillow pictures, all of one size.
    labels: (N,) whole numbers from 0. class_names: name of each label; default "0", "1", ... up to the largest.
    validation, test: a share in (0, 1) or a count of images to hold out (see split.stratified, with `seed`), or
        the part itself: a tuple (images, labels), or an iterable as above.
    Integers become uint8 and floats float32. An array that has its final form is used without a copy.
    Raises DataError.
    """
    train, names = to_part("", images, labels)
    given = {"validation": validation, "test": test}
    parts = {part: _own_part(part, value) for part, value in given.items() if not _is_share(value)}
    names = _class_names(class_names if class_names is not None else names, {"": train, **parts})
    shares = {part: value for part, value in given.items() if _is_share(value)}
    parts |= split.cut(train, names, seed=seed, **shares)
    _check_classes(parts["train"].labels)
    return ImageDataset(parts["train"], parts.get("validation"), parts.get("test"), names, name)


def to_part(part: str, images: Any, labels: Any) -> tuple[Arrays, Sequence[str] | None]:
    """Checked arrays, and the class names that the iterable brings, if any. part: "" or its name, for messages."""
    prefix = f"{part} " if part else ""
    names = None
    if labels is None:
        images, labels, names = _gather(f"{prefix}images", images)
    elif isinstance(images, list | tuple) and any(is_picture(image) for image in images):
        images = _stack(f"{prefix}images", list(images))
    pixels = _images(f"{prefix}images", images)
    numbers = _labels(f"{prefix}labels", labels)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{prefix}images and {prefix}labels have different lengths, {len(pixels)} and {len(numbers)}; "
            "give one label for each image"
        )
    return Arrays(pixels, numbers), names


def is_picture(value: Any) -> bool:
    """Whether `value` is a Pillow image; Pillow is not imported for that."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def _is_share(value: Any) -> bool:
    return value is None or np.isscalar(value)


def _own_part(part: str, value: Any) -> Arrays:
    images, labels = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    return to_part(part, images, labels)[0]


def _class_names(names: Sequence[str] | None, parts: dict[str, Arrays]) -> tuple[str, ...]:
    """The names as a tuple, or by default the labels as text, checked against the labels of every part."""
    if names is None:
        labels, total = parts[""].labels, sum(len(arrays.labels) for arrays in parts.values())
        top = max(int(arrays.labels.max()) for arrays in parts.values())
        if top >= max(total, 2):
            raise DataError(
                f"labels go up to {top}, but there are only {total} images; number the classes from 0, "
                "or pass class_names"
            )
        _check_classes(labels)
        names = [str(k) for k in range(top + 1)]
    if isinstance(names, str):
        raise DataError(f"class_names {names!r}: give a list of strings, one for each class")
    names = tuple(names)
    check_class_names(names)
    for part, arrays in parts.items():
        top = int(arrays.labels.max())
        if top >= len(names):
            raise DataError(
                f"class_names has {len(names)} names, but the {part + ' ' if part else ''}labels go up to {top}; "
                f"give {top + 1} names, one for each class"
            )
        check_label_range(f"{part} labels".strip(), arrays.labels, len(names))
    return names


def _check_classes(labels: np.ndarray) -> None:
    if (labels == labels[0]).all():
        raise DataError(f"labels: all {len(labels)} labels are {labels[0]}; training needs at least two classes")


def _as_numpy(what: str, value: Any, expected: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:  # each library raises errors of its own, for example of a tensor on a GPU
        raise DataError(f"{what} cannot become one NumPy array ({one_line(error)}); give {expected}") from None
    if array.dtype.hasobject or array.dtype.kind in "USMmc":
        raise DataError(f"{what} of dtype {array.dtype}: give {expected}")
    return array


def _images(what: str, value: Any) -> np.ndarray:
    """(N, H, W, C) uint8 or float32, with every pixel checked."""
    array = _as_numpy(what, value, f"images of one size, {FORM}, uint8 or float")
    array = array[..., None] if array.ndim == 3 else array
    if array.ndim != 4:
        raise DataError(f"{what} of shape {array.shape}: give {FORM}")
    if not len(array):
        raise DataError(f"{what} of shape {array.shape}: there are no images; give at least two classes of images")
    if 0 in array.shape or array.shape[3] not in (1, 3):
        hint = "; move the channels last with images.transpose(0, 2, 3, 1)" if array.shape[1] in (1, 3) else ""
        raise DataError(f"{what} of shape {array.shape}: give {FORM}{hint}")
    return _floats(what, array) if array.dtype.name.startswith(("float", "bfloat")) else _bytes(what, array)


def _floats(what: str, array: np.ndarray) -> np.ndarray:
    result = np.ascontiguousarray(array, np.float32)
    if all(rows.min() >= 0 and rows.max() <= 1 for rows in chunks(result)):  # False for NaN too
        return result
    for i, image in enumerate(result):
        low, high = image.min(), image.max()
        if np.isnan(low):
            raise DataError(f"{what} hold NaN, first in image {i}; float images must be in [0, 1]")
        if low < 0 or high > 1:
            hint = "; divide them by 255, or give uint8" if 1 < high <= 255 and low >= 0 else ""
            raise DataError(f"{what} go from {low:g} to {high:g} in image {i}; float images must be in [0, 1]{hint}")
    return result


def _bytes(what: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu":
        hint = "; multiply them by np.uint8(255)" if array.dtype.kind == "b" else ""
        raise DataError(f"{what} of dtype {array.dtype}: give uint8 from 0 to 255, or float in [0, 1]{hint}")
    if array.dtype != np.uint8 and not (array.min() >= 0 and array.max() <= 255):
        found = f"{array.dtype} from {array.min()} to {array.max()}"
        raise DataError(f"{what} are {found}: integer images must be in [0, 255]; scale them, or give float in [0, 1]")
    return np.ascontiguousarray(array, np.uint8)


def _labels(what: str, value: Any) -> np.ndarray:
    """(N,) int32; whole numbers of any dtype are accepted."""
    expected = "one whole number from 0 for each image, shape (N,)"
    array = _as_numpy(what, value, expected + "; np.unique(labels, return_inverse=True) numbers names")
    if array.ndim != 1:
        hint = "; labels.argmax(1) turns one-hot rows into numbers" if array.ndim == 2 else ""
        raise DataError(f"{what} of shape {array.shape}: give {expected}{hint}")
    if array.dtype.kind not in "biu":
        array = array.astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(array) | (array != np.round(array)))
        if wrong.size:
            raise DataError(f"{what} holds {array[wrong[0]]} at index {wrong[0]}: give {expected}")
    wrong = np.flatnonzero((array < 0) | (array > np.iinfo(np.int32).max))
    if wrong.size:
        raise DataError(f"{what} holds {array[wrong[0]]} at index {wrong[0]}: give {expected}")
    return array.astype(np.int32, copy=False)


def _gather(what: str, items: Any) -> tuple[Any, Any, Sequence[str] | None]:
    """Images and labels of an iterable, and its class names if it has them."""
    form = 'labels, or an iterable of {"image": ..., "label": ...} or (image, label)'
    if isinstance(items, str | os.PathLike):
        raise DataError(f"{what} {os.fspath(items)!r} is a path; read a folder of pictures with from_folder")
    if hasattr(items, "__array__") or (not hasattr(items, "__iter__") and not hasattr(items, "__getitem__")):
        raise DataError(f"{what} is a {type(items).__name__} without labels; give {form}")
    if isinstance(items, Mapping):  # columns, as tfds.load(..., batch_size=-1) gives them
        return *_of_mapping(what, items), None
    images, labels = [], []
    for i, item in enumerate(items):
        if isinstance(item, Mapping):
            image, label = _of_mapping(f"item {i} of {what}", item)
        elif isinstance(item, tuple | list) and len(item) == 2:
            image, label = item
        else:
            raise DataError(f"item {i} of {what} is a {type(item).__name__}; give {form}")
        images.append(image)
        labels.append(label)
    return _stack(what, images), labels, _names_of(items)


def _of_mapping(what: str, item: Mapping[str, Any]) -> tuple[Any, Any]:
    key = next((key for key in IMAGE_KEYS if key in item), None)
    if key is None or "label" not in item:
        keys = ", ".join(map(repr, item))
        raise DataError(f'{what} has the keys {keys}; "image" (or "img") and "label" are needed: rename the columns')
    return item[key], item["label"]


def _names_of(items: Any) -> Sequence[str] | None:
    """The class names of a Hugging Face data set (its ClassLabel) or of a torchvision data set (its classes)."""
    features = getattr(items, "features", None)
    label = features.get("label") if isinstance(features, Mapping) else None
    return getattr(label, "names", None) or getattr(items, "classes", None)


def _stack(what: str, images: list[Any]) -> np.ndarray:
    """One (N, H, W, C) array; gray images get three channels if another image has three."""
    arrays = [_pixels(f"item {i} of {what}", image) for i, image in enumerate(images)]
    if not arrays:
        raise DataError(f"{what} is empty; give at least two classes of images")
    for i, array in enumerate(arrays):
        if array.shape[:2] != arrays[0].shape[:2]:
            found, first = ("x".join(map(str, x.shape[:2])) for x in (array, arrays[0]))
            raise DataError(f"item {i} of {what} is {found} pixels, item 0 is {first}; resize them to one size")
    channels = max(array.shape[2] for array in arrays)
    if channels == 3:
        arrays = [np.repeat(array, 3, 2) if array.shape[2] == 1 else array for array in arrays]
    try:
        return np.stack(arrays)
    except ValueError:
        raise DataError(f"{what} have different numbers of channels; give {FORM}") from None


def _pixels(what: str, image: Any) -> np.ndarray:
    """(H, W, C) of one image, which is an array or a Pillow picture."""
    if is_picture(image):
        from resnet_jax.data import pictures

        try:
            return pictures.to_array(image)
        except Exception as error:  # Pillow decodes here, and raises errors of many kinds
            raise DataError(f"{what} cannot be decoded ({one_line(error)}); remove it or repair it") from None
    array = _as_numpy(what, image, "an image of shape (H, W) or (H, W, C)")
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise DataError(f"{what} has shape {array.shape}; give an image of shape (H, W) or (H, W, C), not a batch")
    return array
