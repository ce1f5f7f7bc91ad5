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
        picture = _framed(picture, predictor.info.name, changes)
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


def _framed(picture: np.ndarray, name: str, changes: list[str]) -> np.ndarray:
    """A square picture with the margin of the training set's. What is done is added to `changes`."""
    if name in FILLED:
        rows, columns = (np.flatnonzero(np.any(picture > TRIM, axis=others)) for others in ((1, 2), (0, 2)))
        if len(rows) and (len(rows), len(columns)) != picture.shape[:2]:
            picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            changes.append("margin removed")
    height, width = picture.shape[:2]
    if height != width:
        more = max(height, width) - np.array([height, width])
        picture = np.pad(picture, [*((n // 2, n - n // 2) for n in more.tolist()), (0, 0)])
        changes.append("made square with black")
    return picture


def _with_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    return picture if picture.shape[-1] == channels else _to_array(picture, None, channels)


def _to_array(picture: np.ndarray, size: tuple[int, int] | None, channels: int = 0) -> np.ndarray:
    """By the code that reads files, so that the pixels are those of from_folder."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    return pictures.to_array(image, channels or picture.shape[-1], size)
