"""Each picture is drawn here, saved by Pillow and read back; the expected pixels are worked out in NumPy."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.pictures import decode, read_header, to_array

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
GRAY = RGB[..., :1]
ALPHA = RNG.integers(0, 256, (5, 7, 1), np.uint8)
WIDE = RNG.integers(0, 65536, (5, 7), np.uint16)
INDEX = RNG.integers(0, 4, (5, 7), np.uint8)
COLOURS = np.array([[255, 0, 0], [10, 200, 30], [0, 0, 0], [7, 8, 9]], np.uint8)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha / 255
    return np.rint(pixels * alpha + 255 * (1 - alpha)).astype(np.uint8)


def picture(*channels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.squeeze(np.concatenate(channels, 2)))


def palette(colours: np.ndarray) -> Image.Image:
    image = Image.fromarray(INDEX).convert("P")
    image.putdata(INDEX.ravel().tolist())
    image.putpalette(colours.tobytes())
    return image


BITS = np.where(GRAY > 127, 255, 0).astype(np.uint8)
SCALED = np.rint(WIDE[..., None] / 257).astype(np.uint8)
HIDDEN = np.where(INDEX[..., None] == 1, 255, COLOURS[INDEX]).astype(np.uint8)
GRAYS = COLOURS[:, :1].repeat(3, 1)
FIRST_GRAY = np.where(GRAY[0, 0] == GRAY, 255, GRAY)
FIRST_RGB = np.where((RGB[0, 0] == RGB).all(2, keepdims=True), 255, RGB)

# mode and file -> the picture, how it is saved, the pixels expected, and by how much they may differ
MODES = {
    "1 png": (picture(BITS).convert("1"), {"format": "PNG"}, BITS, 0),
    "1 tiff": (picture(BITS).convert("1"), {"format": "TIFF"}, BITS, 0),
    "L png": (picture(GRAY), {"format": "PNG"}, GRAY, 0),
    "L bmp": (picture(GRAY), {"format": "BMP"}, GRAY, 0),
    "L gif": (picture(GRAY), {"format": "GIF"}, GRAY, 0),
    "L transparent": (picture(GRAY), {"format": "PNG", "transparency": int(GRAY[0, 0, 0])}, FIRST_GRAY, 0),
    "LA png": (picture(GRAY, ALPHA), {"format": "PNG"}, on_white(GRAY, ALPHA), 0),
    "I;16 png": (Image.fromarray(WIDE), {"format": "PNG"}, SCALED, 0),
    "I;16 tiff": (Image.fromarray(WIDE), {"format": "TIFF"}, SCALED, 0),
    "I tiff": (Image.fromarray(WIDE.astype(np.int32)), {"format": "TIFF"}, SCALED, 0),
    "F tiff": (Image.fromarray(WIDE / np.float32(65535)), {"format": "TIFF"}, SCALED, 0),
    "F to 255": (Image.fromarray(GRAY[..., 0].astype(np.float32)), {"format": "TIFF"}, GRAY, 0),
    "P png": (palette(COLOURS), {"format": "PNG"}, COLOURS[INDEX], 0),
    "P gif": (palette(COLOURS), {"format": "GIF"}, COLOURS[INDEX], 0),
    "P bmp": (palette(COLOURS), {"format": "BMP"}, COLOURS[INDEX], 0),
    "P of grays": (palette(GRAYS), {"format": "PNG"}, GRAYS[INDEX][..., :1], 0),
    "P transparent": (palette(COLOURS), {"format": "PNG", "transparency": 1}, HIDDEN, 0),
    "P transparent gif": (palette(COLOURS), {"format": "GIF", "transparency": 1}, HIDDEN, 0),
    "RGB png": (picture(RGB), {"format": "PNG"}, RGB, 0),
    "RGB bmp": (picture(RGB), {"format": "BMP"}, RGB, 0),
    "RGB tiff": (picture(RGB), {"format": "TIFF", "compression": "tiff_lzw"}, RGB, 0),
    "RGB webp": (picture(RGB), {"format": "WEBP", "lossless": True}, RGB, 0),
    "RGB transparent": (picture(RGB), {"format": "PNG", "transparency": tuple(RGB[0, 0].tolist())}, FIRST_RGB, 0),
    "RGBA png": (picture(RGB, ALPHA), {"format": "PNG"}, on_white(RGB, ALPHA), 0),
    "RGBA tiff": (picture(RGB, ALPHA), {"format": "TIFF"}, on_white(RGB, ALPHA), 0),
    "RGBA webp": (picture(RGB, ALPHA), {"format": "WEBP", "lossless": True, "exact": True}, on_white(RGB, ALPHA), 0),
    "CMYK tiff": (picture(RGB).convert("CMYK"), {"format": "TIFF"}, RGB, 1),
}


def saved(image: Image.Image, **options) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, **options)
    stream.seek(0)
    return stream


def assert_close(found: np.ndarray, expected: np.ndarray, most: int) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= most


@pytest.mark.parametrize("case", MODES)
def test_every_mode_of_a_file(tmp_path, case):
    image, options, expected, most = MODES[case]
    path = tmp_path / "picture"
    path.write_bytes(saved(image, **options).read())
    header = read_header(path)
    assert header == (5, 7, expected.shape[2] == 1)
    assert_close(decode(path, None, expected.shape[2]), expected, most)
    with Image.open(path) as again:
        assert_close(to_array(again), expected, most)
    if header.gray:
        assert_close(decode(path, None, 3), expected.repeat(3, 2), most)


FLAT = np.full((16, 16, 3), (200, 100, 50), np.uint8)
LOSSY = {
    "RGB jpeg": (Image.fromarray(FLAT), FLAT),
    "CMYK jpeg": (Image.fromarray(FLAT).convert("CMYK"), FLAT),
    "YCbCr jpeg": (Image.fromarray(FLAT).convert("YCbCr"), FLAT),
    "L jpeg": (Image.fromarray(FLAT[..., 0]), FLAT[..., :1]),
}


@pytest.mark.parametrize("case", LOSSY)
def test_jpeg_of_one_colour(case):
    image, expected = LOSSY[case]
    assert_close(to_array(Image.open(saved(image, format="JPEG", quality=95))), expected, 2)


# modes that Pillow makes in memory: each equals another mode of the same picture
IN_MEMORY = {
    "RGBa": (picture(RGB, ALPHA // 255 * 255).convert("RGBa"), on_white(RGB, ALPHA // 255 * 255)),
    "La": (picture(GRAY, ALPHA // 255 * 255).convert("La"), on_white(GRAY, ALPHA // 255 * 255)),
    "PA": (palette(COLOURS).convert("PA"), COLOURS[INDEX]),
    "RGBX": (picture(RGB).convert("RGBX"), RGB),
    "I;16B": (Image.frombytes("I;16B", (7, 5), WIDE.astype(">u2").tobytes()), SCALED),
    "I": (Image.fromarray(WIDE.astype(np.int32)), SCALED),
}


@pytest.mark.parametrize("case", IN_MEMORY)
def test_every_mode_in_memory(case):
    image, expected = IN_MEMORY[case]
    assert image.mode == case
    assert_close(to_array(image), expected, 0)


def test_other_colour_spaces():
    assert_close(to_array(Image.fromarray(FLAT).convert("YCbCr")), FLAT, 2)
    assert_close(to_array(Image.fromarray(FLAT).convert("HSV")), FLAT, 3)
    lab = Image.frombytes("LAB", (1, 1), bytes([137, 0, 0]))  # L* = 53.7 and no colour: sRGB 128.8 by CIE's formula
    assert_close(to_array(lab), np.full((1, 1, 3), 129, np.uint8), 2)


@pytest.mark.parametrize("pixels", [[[-1]], [[65536]]])
def test_integers_outside_16_bits_are_an_error(pixels):
    with pytest.raises(ValueError, match="outside 16 bits"):
        to_array(Image.fromarray(np.array(pixels, np.int32)))


@pytest.mark.parametrize("value", [-0.1, 256, np.nan, np.inf])
def test_floats_of_no_clear_range_are_an_error(value):
    with pytest.raises(ValueError, match=r"outside \[0, 1\] and \[0, 255\]"):
        to_array(Image.fromarray(np.array([[0.5, value]], np.float32)))


def test_colour_becomes_gray_by_its_luma():
    luma = np.rint(RGB @ [0.299, 0.587, 0.114])[..., None]
    assert_close(to_array(picture(RGB), 1), luma.astype(np.uint8), 1)


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_the_first_frame_counts(format):
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (0, 128, 255)]
    stream = saved(frames[0], format=format, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(stream).n_frames == 3  # type: ignore[attr-defined]
    assert (to_array(Image.open(stream), 3) == 0).all()


UPRIGHT = {  # EXIF 2.3, tag 0x0112: how the stored rows and columns lie in the upright picture
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_every_orientation(tmp_path, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = RGB if format != "JPEG" else RGB.repeat(16, 0).repeat(16, 1)  # blocks that JPEG keeps well
    path = tmp_path / "picture"
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    path.write_bytes(saved(picture(stored), format=format, exif=exif, **options).read())
    expected = UPRIGHT[orientation](stored)
    assert read_header(path)[:2] == expected.shape[:2]
    assert_close(decode(path, None, 3), expected, 0 if format != "JPEG" else 8)


def test_damaged_exif_data_do_not_spoil_the_picture():
    stream = saved(picture(RGB), format="PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert_close(to_array(Image.open(stream)), RGB, 0)


def test_another_size_is_covered_and_cropped_around_the_centre():
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 200
    assert (to_array(Image.fromarray(wide), 1, (4, 4))[:, 1:-1] == 200).all()
    assert (to_array(Image.fromarray(wide.T), 1, (4, 4))[1:-1] == 200).all()
    assert to_array(Image.fromarray(wide), 3, (5, 9)).shape == (5, 9, 3)


@pytest.mark.parametrize("size", [(8, 12), (20, 30), (64, 96)])
def test_resizing_is_bilinear_with_antialias(size):
    pixels = RNG.integers(0, 256, (32, 48, 3)).astype(np.float32)
    expected = jax.image.resize(pixels, (*size, 3), "bilinear", antialias=True)
    found = to_array(Image.fromarray(pixels.astype(np.uint8)), 3, size)
    assert_close(found, np.asarray(expected).round().astype(np.uint8), 1)


@pytest.mark.parametrize("limit", [30, 10])
def test_a_picture_above_pillows_limit_is_an_error(tmp_path, monkeypatch, limit):
    """Pillow itself only warns up to twice the limit."""
    (tmp_path / "picture").write_bytes(saved(picture(RGB), format="PNG").read())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning), match="35 pixels"):
        decode(tmp_path / "picture", None, 3)
