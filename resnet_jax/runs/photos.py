"""Pictures from anywhere, prepared as the training images of a run were.

Fashion-MNIST, MNIST and KMNIST show light objects on black. A photo or a drawing is usually dark on light, has a wide
margin and is not square. Three steps make the picture like those of the training set: invert it, remove its background
and margin, resize it. Fashion-MNIST itself was made so: arXiv:1708.07747, section 2 and figure 1.
"""

import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet_jax.data import DATASETS, pictures
from resnet_jax.data.listing import shown
from resnet_jax.errors import DataError, one_line
from resnet_jax.paths import user_path
from resnet_jax.runs.predictor import Predictor

LIGHT_ON_DARK = ("fashion_mnist", "mnist", "kmnist")  # the named sets of light objects on black
FILLED = ("fashion_mnist",)  # the object reaches two opposite sides of the image; in the other sets it has a margin
WIDE = 0.05  # of the longer side: a smaller margin is that of a training image, up to the rounding of its pixels
RESAMPLING = Image.Resampling.BOX  # the mean of the pixels: an enlarged training image becomes the image itself
LOOK = 112  # pixels of the longer side of the copy in which the object is found: the noise of a camera averages out
MIDDLE = 128  # a background from here on is light
CORNER = 28  # a corner is 1/28 of a side, so it is one pixel of a training image
TRIM = 13  # a pixel of the object differs from the background by more: 5% of 255, as in Fashion-MNIST
INVERTED = "inverted (light background)"


class Photo(NamedTuple):
    """A picture as a network takes it. pixels: (H, W, C) uint8; changes: what was done to it, for people to read."""

    pixels: np.ndarray
    inverted: bool
    changes: tuple[str, ...]


def open_picture(path: str | os.PathLike[str], channels: int | None = None) -> np.ndarray:
    """The picture at `path`, upright and on white, as (H, W, channels) uint8: any mode and size, as from_folder reads.

    channels None: 1 if the picture is gray, else 3. Raises DataError, of one line, if the file is missing, is not a
    picture, or has more pixels than Pillow's limit. Pillow may warn of damaged metadata; see pictures.quiet.
    """
    file = user_path(path, "picture", DataError)
    if file.is_dir():
        raise DataError(f"{shown(str(file))} is a folder; give a picture")
    try:
        return pictures.decode(file, None, channels)
    except FileNotFoundError:
        raise DataError(f"{shown(str(file))}: there is no such file") from None
    except Exception as error:  # of a damaged file Pillow raises errors of many kinds
        reason = one_line(error).replace(repr(str(file)), "the file")
        kinds = "a PNG, JPEG, WebP, BMP, GIF or TIFF file"
        raise DataError(f"{shown(str(file))} cannot be read as a picture ({reason}); give {kinds}") from error


def is_light_on_dark(predictor: Predictor) -> bool:
    """Whether the run was trained on a named set of light objects on black. A folder of pictures never counts as one.

    A fit of a Trainer keeps only the name of its data, so the class names and the image shape must be those of the set.
    """
    info, config = predictor.info, predictor.config
    if info.name not in LIGHT_ON_DARK or (config is not None and config.data.data_folder):
        return False
    spec = DATASETS[info.name]
    return (info.class_names, info.image_shape) == (spec.class_names, spec.image_shape)


def on_dark(picture: np.ndarray) -> tuple[np.ndarray, bool]:
    """The picture on a dark background, and whether it was inverted for that.

    picture: (H, W, C) uint8. It is inverted if its background is light (see background). The rule is right for each of
    the 70,000 images of Fashion-MNIST, and for each of their negatives. It is wrong for a picture whose object covers
    three corners, or whose background is half light and half dark.
    """
    light = background(picture) >= MIDDLE
    return (255 - picture if light else picture), light


def background(picture: np.ndarray) -> float:
    """The brightness of the background, 0 to 255: the median of the mean brightness of the four corners.

    picture: (H, W, C) uint8. A corner has 1/28 of the height and of the width. An object rarely covers two corners;
    it often covers half of the border, so the border is no good measure.
    """
    height, width = (-(-side // CORNER) for side in picture.shape[:2])
    rows, columns = (slice(height), slice(-height, None)), (slice(width), slice(-width, None))
    return float(np.median([picture[row, column].mean() for row in rows for column in columns]))


def as_trained(picture: np.ndarray, predictor: Predictor, invert: bool | None = None) -> Photo:
    """The picture with the size, the channels and the background of the images that the predictor's run learnt from.

    picture: (H, W, C) uint8, such as open_picture returns. invert: whether to invert it; None: if its background is
    light and is_light_on_dark(predictor). For such a run a picture that is inverted or is not as large as the training
    images gets a black background. One that is not as large also loses the margin around the object (fashion_mnist
    alone) and becomes square by adding black. For every other run the picture is scaled until it covers the size of
    the training images and is cropped around its centre, as from_folder does.
    """
    height, width, channels = predictor.image_shape
    picture = _with_channels(picture, channels)
    same_size, dark = picture.shape[:2] == (height, width), is_light_on_dark(predictor)
    inverted = on_dark(picture)[1] if invert is None and dark else bool(invert)
    changes = [INVERTED if invert is None else "inverted"] if inverted else []
    picture = 255 - picture if inverted else picture
    if dark and (inverted or not same_size):
        picture = _on_black(picture, changes)
    if dark and not same_size:
        picture = _placed(_trimmed(picture, predictor.info.name, changes), (height, width), changes)
    if picture.shape[0] * width != picture.shape[1] * height:
        changes.append("cropped around its centre")
    return Photo(_to_array(picture, (height, width)), inverted, tuple(changes))


def _on_black(picture: np.ndarray, changes: list[str]) -> np.ndarray:
    """The brightness from the background's to white, stretched to 0 to 255, if the background is dark gray."""
    level = round(background(picture))
    if not 0 < level < MIDDLE:
        return picture
    changes.append("background made black")
    table = np.rint(np.maximum(np.arange(256) - level, 0) * (255 / (255 - level))).astype(np.uint8)
    return table[picture]


def _trimmed(picture: np.ndarray, name: str, changes: list[str]) -> np.ndarray:
    """The picture without the margin around its object, if the training set has none. It is added to `changes`."""
    if name not in FILLED:
        return picture
    top, bottom, left, right = _object_in(picture)
    if max(bottom - top, right - left) >= (1 - WIDE) * max(picture.shape[:2]):
        return picture
    changes.append("margin removed")
    return picture[top:bottom, left:right]


def _placed(picture: np.ndarray, size: tuple[int, int], changes: list[str]) -> np.ndarray:
    """The whole picture on black in the middle of `size`, as large as possible.

    It is scaled before it is placed, so that its edges lie on edges of pixels, as in Fashion-MNIST. An odd row or
    column of black is above or on the left, as in most of its images.
    """
    height, width, channels = picture.shape
    scale = min(size[0] / height, size[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    placed = np.zeros((*size, channels), np.uint8)
    top, left = (size[0] - rows + 1) // 2, (size[1] - columns + 1) // 2
    small = np.asarray(image.resize((columns, rows), RESAMPLING)).reshape(rows, columns, channels)
    placed[top : top + rows, left : left + columns] = small
    if (rows, columns) != size:
        changes.append("made square with black")
    return placed


def _object_in(picture: np.ndarray) -> tuple[int, int, int, int]:
    """The rows and columns that hold the object: top, bottom, left and right. All of them for a black picture."""
    height, width = picture.shape[:2]
    step = max(1, max(height, width) // LOOK)
    small = Image.fromarray(picture.max(-1)).reduce(step)
    bright = np.asarray(small) > TRIM
    rows, columns = (np.flatnonzero(np.any(bright, axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, height, 0, width
    bottom, right = (min(int(last[-1] + 1) * step, side) for last, side in ((rows, height), (columns, width)))
    return int(rows[0]) * step, bottom, int(columns[0]) * step, right


def _with_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    return picture if picture.shape[-1] == channels else _to_array(picture, None, channels)


def _to_array(picture: np.ndarray, size: tuple[int, int] | None, channels: int = 0) -> np.ndarray:
    """By the code that reads files, so that the pixels are those of from_folder."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    return pictures.to_array(image, channels or picture.shape[-1], size)
