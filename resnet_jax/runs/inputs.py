"""Pictures as users give them, as batches of the size and the channels that a network takes."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax import numpy as jnp
from PIL import Image
from tqdm import tqdm

from resnet_jax.arguments import shown
from resnet_jax.data.pictures import BACKGROUND, to_array
from resnet_jax.errors import ConfigError, one_line

COLOURS = (3, 4)  # channels of RGB and RGBA
LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in 16 bits, as Pillow computes it
FEW = 8  # pixels; an array (H, W, fewer than FEW) is one picture with channels, not a stack of narrow gray ones
PIXELS = 1 << 20  # of the pictures that are resized at once, which bounds the memory


def as_stacks(images: Any, image_shape: Sequence[int]) -> list[np.ndarray]:
    """The pictures as stacks (N, H, W, channels): one for an array, one for each picture of a list.

    image_shape: (H, W, C) of the training images. ConfigError for anything that is no picture for the network.
    """
    channels = image_shape[-1]
    _check_not_a_path(images, "images")
    if isinstance(images, Image.Image):
        return [_of_pillow(images, channels)]
    if isinstance(images, list | tuple):
        for i, x in enumerate(images):
            _check_not_a_path(x, f"picture {i}")
        if any(isinstance(x, Image.Image) or _ndim(x) >= 2 for x in images):
            return [_one(x, channels, f"picture {i}") for i, x in enumerate(images)]
        if not images:
            return []
    array = _as_array(images, "images")
    if array.ndim == 2:
        array = array[None, :, :, None]
    elif array.ndim == 3 and channels == 1 and array.shape[1:] == tuple(image_shape[:2]):
        array = array[..., None]  # also where W is 3, as in no picture of three channels
    elif array.ndim == 3 and array.shape[-1] in (1, *COLOURS, channels):
        array = array[None]
    elif array.ndim == 3 and channels == 1:
        _check_width(array.shape)
        array = array[..., None]
    return [_checked(array, channels, f"images of shape {np.shape(images)}")]


def _check_not_a_path(images: Any, name: str) -> None:
    """Raise ConfigError for text and for a path: the predictor takes pictures, and opens no files."""
    if isinstance(images, str | bytes | os.PathLike):
        path = shown(os.fspath(images))
        raise ConfigError(
            f"{name} {path}: a path is no picture; open it with PIL.Image.open(path), or use the command predict"
        )


def _check_width(shape: tuple[int, ...]) -> None:
    """Raise ConfigError for a shape (H, W, 2) or the like, which may be one picture or several gray ones."""
    if shape[2] < FEW <= min(shape[:2]):
        raise ConfigError(
            f"images of shape {shape}: if the last axis is the channels, a picture has 1 (gray), 3 (RGB) or 4 (RGBA); "
            f"for {shape[0]} gray pictures of {shape[1]}x{shape[2]} pixels give (N, H, W, 1)"
        )


def _ndim(x: Any) -> int:
    return getattr(x, "ndim", 0)  # of an array of NumPy, JAX or PyTorch


def _one(picture: Any, channels: int, name: str) -> np.ndarray:
    """One picture of a list, as a stack of one."""
    if isinstance(picture, Image.Image):
        return _of_pillow(picture, channels)
    array = _as_array(picture, name)
    name = f"{name} of shape {array.shape}"
    if array.ndim == 2 and array.shape[-1] in (1, *COLOURS):  # a row of a picture that was split into a list
        raise ConfigError(f"{name}: the last axis may be its channels; give (H, W, {channels})")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise ConfigError(f"{name}: each picture of a list is one, (H, W) or (H, W, {channels})")
    return _checked(array[None], channels, name)


def _of_pillow(image: Image.Image, channels: int) -> np.ndarray:
    if channels not in (1, 3):
        raise ConfigError(f"picture: this network takes {channels} channels; give an array (H, W, {channels})")
    try:
        return to_array(image, channels)[None]
    except (OSError, ValueError) as error:
        raise ConfigError(f"picture: Pillow cannot read it ({one_line(error)}); give another one") from error


def _as_array(images: Any, name: str) -> np.ndarray:
    """The images as an array of NumPy, whose values can be those of pixels."""
    try:
        array = np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors of PyTorch on a GPU
        raise ConfigError(f"{name}: no array ({one_line(error)}); give (N, H, W, C), or a list of pictures") from error
    if array.dtype.kind in "OSUV" and not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 has the kind V
        raise ConfigError(
            f"{name} {shown(images)}: no numbers; give an array (N, H, W, C), a picture of Pillow, or a list of them"
        )
    low, high = (array.min(), array.max()) if array.size and array.dtype.kind in "iuf" else (0, 0)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise ConfigError(f"{name} of dtype {array.dtype}, from {low} to {high}: use integers from 0 to 255")
        return array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ConfigError(f"{name} of dtype {array.dtype}: use uint8 (0 to 255) or floating (0 to 1)")
    if array.dtype.kind != "f" and array.size:  # bfloat16
        low, high = array.astype(np.float32).min(), array.astype(np.float32).max()
    if np.isnan(low):
        raise ConfigError(f"floating {name} have NaN values; replace these by numbers in [0, 1]")
    if not (low >= 0 and high <= 1):
        raise ConfigError(
            f"floating {name}, from {low:g} to {high:g}, must lie in [0, 1]; divide by 255, or pass uint8"
        )
    return array


def _checked(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    """The stack itself; ConfigError unless it is (N, H, W, channels), or can be turned into that."""
    takes = f"this network takes (N, H, W, {channels}), or one picture (H, W, {channels})"
    if array.ndim != 4:
        raise ConfigError(f"{name}: {takes}")
    held = array.shape[-1]
    if held != channels and (channels, held) not in CONVERSIONS:
        first = "; move the channels to the last axis" if array.shape[1] in (1, 3, channels) else ""
        raise ConfigError(f"{name}: {takes}{first}")
    if 0 in array.shape[1:3] and len(array):
        raise ConfigError(f"{name}: the pictures have no pixels; {takes}")
    if held != channels:
        _report(f"pictures with {held} channels for a network that takes {channels}: {CONVERSIONS[channels, held]}")
    return array


# (channels of the network, of the picture) -> what is done, which is what from_folder does to files
CONVERSIONS = {
    (1, 3): "colour becomes gray by ITU-R 601-2 luma",
    (1, 4): "transparent pixels are blended with white, and colour becomes gray by ITU-R 601-2 luma",
    (3, 1): "gray is repeated for red, green and blue",
    (3, 4): "transparent pixels are blended with white",
}


@functools.cache
def _report(line: str) -> None:
    tqdm.write(line)  # once: predictions run in loops


def batches(stacks: Sequence[np.ndarray], shape: Sequence[int], size: int) -> Iterator[np.ndarray]:
    """The pictures in batches of up to `size`: (n, *shape), uint8 or float32 in [0, 1]."""
    if len(stacks) == 1:
        for i in range(0, len(stacks[0]), size):
            yield fitted(stacks[0][i : i + size], shape)
        return
    for i in range(0, len(stacks), size):
        parts = [fitted(stack, shape) for stack in stacks[i : i + size]]
        if len({part.dtype for part in parts}) > 1:
            parts = [part / np.float32(255) if part.dtype == np.uint8 else part for part in parts]
        yield np.concatenate(parts)


def fitted(stack: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(N, H, W, channels) as (N, *shape). Pictures of another size are resized a few at a time."""
    height, width, channels = shape
    if stack.shape[1:3] == (height, width):
        return _with_channels(_plain(stack), channels)
    group = max(1, PIXELS // max(stack[0].size, 1))
    parts = [stack[i : i + group] for i in range(0, len(stack), group)]
    return np.concatenate([resize(_with_channels(_plain(part), channels), (height, width)) for part in parts])


def _plain(stack: np.ndarray) -> np.ndarray:
    """uint8, or float32."""
    return stack.astype(np.uint8 if stack.dtype.kind in "iu" else np.float32, copy=False)


def _with_channels(stack: np.ndarray, channels: int) -> np.ndarray:
    """The stack with the channels of the network; see CONVERSIONS."""
    if stack.shape[-1] == channels:
        return stack
    whole = stack.dtype == np.uint8
    if stack.shape[-1] == 4:
        one = 255 if whole else 1
        colour, alpha = (x.astype(np.uint32) if whole else x for x in (stack[..., :3], stack[..., 3:]))
        white = BACKGROUND if whole else 1
        stack = colour * alpha + white * (one - alpha)
        stack = ((stack + 127) // 255).astype(np.uint8) if whole else stack
    if channels == 3:
        return np.broadcast_to(stack, (*stack.shape[:-1], 3))
    if whole:
        return ((stack @ np.array(LUMA, np.uint32)[:, None] + (1 << 15)) >> 16).astype(np.uint8)
    return stack @ (np.array(LUMA, np.float32)[:, None] / np.float32(1 << 16))


def resize(stack: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As data.augment.resize of pictures in [0, 1], in float32; here no program is compiled for each size."""
    n, height, width, channels = stack.shape
    scale = np.float32(255 if stack.dtype == np.uint8 else 1)
    x = stack.astype(np.float32).reshape(n, height, width * channels)
    x = np.matmul(_weights(height, size[0]), x).reshape(n, size[0], width, channels)
    return np.matmul(_weights(width, size[1]), x) / scale


@functools.lru_cache(maxsize=32)
def _weights(old: int, new: int) -> np.ndarray:
    """(new, old): what each old pixel adds to each new one. Bilinear, antialiased, pixel centres at 0.5."""
    step = old / new
    centres = (np.arange(new) + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)) / max(step, 1))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
