"""One picture as an array of uint8: every mode of Pillow, transparency, orientation and size."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF")  # by content; a file's name may say another
BACKGROUND = 255  # white, behind transparent pixels
GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
SIXTEEN_BITS = 65535
UPRIGHT = {  # EXIF orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """What a file says before its pixels are decoded. height, width: after the EXIF orientation."""

    height: int
    width: int
    gray: bool


def read_header(path: str | os.PathLike[str]) -> Header:
    """Size and colour of the picture at `path`. Raises whatever Pillow raises of a file that it cannot read."""
    with _opened(path) as image:
        if image.format == "TIFF":  # versions of Pillow differ: some swap a TIFF's sides on opening, some on loading
            image.load()
        width, height = image.size[::-1] if _orientation(image) >= 5 else image.size  # 5 to 8 swap the sides
        return Header(height, width, is_gray(image))


def decode(path: str | os.PathLike[str], size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """The first frame of the picture at `path` as (H, W, channels) uint8, upright, on white.

    size: (H, W), or None to keep the picture's own. channels None: 1 if the picture is gray, else 3. See to_array.
    Raises as read_header does.
    """
    with _opened(path) as image:
        return to_array(image, channels, size)


def to_array(image: Image.Image, channels: int | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """A Pillow picture as (H, W, channels) uint8; channels None: 1 if the picture is gray, else 3.

    The EXIF orientation is applied. Transparent pixels are blended with white. 16-bit gray (mode I too) is
    divided by 257 and rounded; mode F in [0, 1] is multiplied by 255, and rounded if it is in [0, 255].
    Another size is reached by scaling the picture until it covers `size`, with Pillow's antialiased bilinear
    filter, and cropping around the centre. Colour becomes gray by Pillow's luma, ITU-R 601-2.
    """
    image.load()  # a PNG may have its EXIF data behind the pixels
    turn = UPRIGHT.get(_orientation(image))
    if channels is None:
        channels = 1 if is_gray(image) else 3
    image = _eight_bits(image).convert("L" if channels == 1 else "RGB")
    image = image if turn is None else image.transpose(turn)
    if size is not None and size != (image.height, image.width):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def is_gray(image: Image.Image) -> bool:
    """Whether the picture's mode has no colour, or its palette holds only grays."""
    if image.mode not in ("P", "PA"):
        return image.mode in GRAY_MODES
    red, green, blue = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3).T
    return bool((red == green).all() and (green == blue).all())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings, of damaged EXIF data for example. Enter it in one thread: filters are global."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The picture, not decoded yet. Pillow only warns of a picture above its limit; here it is an error."""
    with Image.open(path, formats=FORMATS) as image:
        pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
        if limit is not None and pixels > limit:
            raise Image.DecompressionBombError(f"{pixels} pixels, more than Pillow's limit of {limit}")
        yield image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if it is missing or damaged."""
    try:
        value = Image.Image.getexif(image).get(0x0112, 1)  # PngImageFile.getexif would decode the pixels
    except Exception:  # of damaged EXIF data Pillow raises errors of many kinds; the pixels can still be good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture in mode L or RGB."""
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image)))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    if image.has_transparency_data:
        return _on_background(image)
    if mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """uint8 of wider pixels. ValueError if their range has no clear meaning."""
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f":
        if not (low >= 0 and high <= 255):  # NaN too
            raise ValueError(f"float pixels from {low:g} to {high:g}, outside [0, 1] and [0, 255]")
        return np.rint(pixels * np.float64(255 if high <= 1 else 1)).astype(np.uint8)
    if low < 0 or high > SIXTEEN_BITS:
        raise ValueError(f"integer pixels from {low} to {high}, outside 16 bits")
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_background(image: Image.Image) -> Image.Image:
    """Blended with BACKGROUND, rounded to the nearest: Pillow's own blend would add a second rounding."""
    gray = image.mode in ("1", "L", "LA", "La")
    pixels = np.asarray(image.convert("LA" if gray else "RGBA"), np.uint32)
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    blended = (colour * alpha + BACKGROUND * (255 - alpha) + 127) // 255
    return Image.fromarray(np.squeeze(blended.astype(np.uint8), 2) if gray else blended.astype(np.uint8))
