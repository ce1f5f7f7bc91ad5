"""Pictures as users give them: how many rows they give, and that each row is that of the right pixels."""

import tracemalloc
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image

from resnet_jax import Predictor, create_model
from resnet_jax.data.augment import Preprocess
from resnet_jax.data.augment import resize as compiled_resize
from resnet_jax.data.pictures import to_array
from resnet_jax.errors import ConfigError
from resnet_jax.models import Arch
from resnet_jax.runs import inputs
from resnet_jax.runs.build import DataInfo

ARCH = Arch("tiny", ((1, 8), (1, 8)))
RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (8, 8, 4), np.uint8)
RGB, GRAY = RGBA[..., :3], RGBA[..., 0]
STACK = RNG.integers(0, 256, (5, 8, 8, 3), np.uint8)
LARGE = RNG.integers(0, 256, (60, 40, 3), np.uint8)


class Pixels(Predictor):
    """It keeps what the network gets, and its rows are the pixels themselves."""

    def __init__(self, channels: int, size: tuple[int, int] = (8, 8)):
        names = tuple(map(str, range(size[0] * size[1] * channels)))
        model = create_model(ARCH, len(names))
        super().__init__(model, {}, DataInfo("own", names, (*size, channels), 0), Preprocess(size))
        self.got: list[np.ndarray] = []

    def probabilities(self, images: Any) -> Any:
        self.got.append(images)
        unit = images / np.float32(255) if images.dtype == np.uint8 else images
        return unit.reshape(len(unit), -1)


def rows(*of: np.ndarray) -> np.ndarray:
    """What Pixels gives for pictures of uint8."""
    return np.stack([picture.reshape(-1) for picture in of]) / np.float32(255)


def pillow(array: np.ndarray, channels: int) -> np.ndarray:
    return to_array(Image.fromarray(array), channels)


FORMS: dict[str, tuple[int, Any, Any]] = {
    # of a network of one channel
    "(H, W)": (1, GRAY, [GRAY]),
    "(H, W, 1)": (1, GRAY[..., None], [GRAY]),
    "(1, H, W)": (1, GRAY[None], [GRAY]),
    "(N, H, W)": (1, STACK[..., 0], STACK[..., 0]),
    "(3, H, W)": (1, STACK[:3, ..., 0], STACK[:3, ..., 0]),
    "(N, H, W, 1)": (1, STACK[..., :1], STACK[..., 0]),
    "(H, W, 3) for gray": (1, RGB, [pillow(RGB, 1)]),
    "(H, W, 4) for gray": (1, RGBA, [pillow(RGBA, 1)]),
    "(N, H, W, 3) for gray": (1, STACK, [pillow(picture, 1) for picture in STACK]),
    "nested lists": (1, GRAY.tolist(), [GRAY]),
    "rows in a list": (1, list(GRAY), [GRAY]),
    "list of gray": (1, list(STACK[..., 0]), STACK[..., 0]),
    "mixed list": (1, [GRAY, RGB, Image.fromarray(RGBA), GRAY / 255], [GRAY, pillow(RGB, 1), pillow(RGBA, 1), GRAY]),
    # of a network of three
    "(H, W, 3)": (3, RGB, [RGB]),
    "(N, H, W, 3)": (3, STACK, STACK),
    "(H, W, 4)": (3, RGBA, [pillow(RGBA, 3)]),
    "(H, W) for RGB": (3, GRAY, [pillow(GRAY, 3)]),
    "(H, W, 1) for RGB": (3, GRAY[..., None], [pillow(GRAY, 3)]),
    "(N, H, W, 1) for RGB": (3, STACK[..., :1], [pillow(picture[..., 0], 3) for picture in STACK]),
    "tuple": (3, tuple(STACK), STACK),
    "jax": (3, jnp.asarray(RGB), [RGB]),
    "int64": (3, RGB.astype(np.int64), [RGB]),
    "uint16": (3, RGB.astype(np.uint16), [RGB]),
    "float64": (3, RGB / 255, [RGB]),
    "empty list": (3, [], []),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_rows_of_its_pictures(form):
    channels, images, expected = FORMS[form]
    found = Pixels(channels)(images)
    assert found.shape == (len(expected), 64 * channels)
    if len(expected):
        np.testing.assert_allclose(found, rows(*expected), atol=1e-6)


def test_transparent_and_colourful_floats():
    """As their bytes, up to the rounding of these."""
    for channels in (1, 3):
        np.testing.assert_allclose(Pixels(channels)(RGBA / 255), rows(pillow(RGBA, channels)), atol=1 / 255)


def test_bfloat16_and_float16():
    for dtype in (jnp.bfloat16, jnp.float16):
        np.testing.assert_allclose(Pixels(3)(jnp.asarray(RGB / 255, dtype)), rows(RGB), atol=1e-2)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pillow(mode, channels):
    """As the reader of files reads it. I and F are made from pixels, as Pillow's conversion to them is no picture."""
    values = {"I": GRAY.astype(np.int32) * 257, "F": GRAY.astype(np.float32) / 255}
    if mode in values:
        image = Image.fromarray(values[mode])
    elif mode == "LAB":
        image = Image.frombytes("LAB", (8, 8), RGB.tobytes())
    elif mode == "PA":
        image = Image.fromarray(RGB).convert("P").convert("PA")
    else:
        image = Image.fromarray(RGB).convert(mode)
    assert image.mode == mode
    np.testing.assert_allclose(Pixels(channels)(image), rows(to_array(image, channels)), atol=1e-6)


@pytest.mark.parametrize(("channels", "shape"), [(3, (3, 8, 8)), (3, (2, 3, 8, 8)), (3, (5, 8, 8)), (1, (2, 1, 8, 8))])
def test_channels_on_another_axis_are_refused(channels, shape):
    with pytest.raises(ConfigError, match=rf"this network takes \(N, H, W, {channels}\)"):
        Pixels(channels)(np.zeros(shape, np.uint8))


def test_a_conversion_is_reported_once(capsys):
    inputs._report.cache_clear()
    for _ in range(2):
        Pixels(1)(RGB)
    line = "pictures with 3 channels for a network that takes 1: colour becomes gray by ITU-R 601-2 luma\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("size", [(60, 40), (8, 8), (7, 90), (1, 1), (61, 13)])
def test_another_size(size):
    """As the program of training resizes, which is compiled for each size."""
    unit = LARGE[None] / np.float32(255)
    expected = np.asarray(compiled_resize(jnp.asarray(unit), size))
    np.testing.assert_allclose(inputs.resize(LARGE[None], size), expected, atol=1e-5)
    np.testing.assert_allclose(inputs.resize(unit, size), expected, atol=1e-5)
    np.testing.assert_allclose(Pixels(3, size)(LARGE), expected.reshape(1, -1), atol=1e-5)
    np.testing.assert_allclose(Pixels(3, size)([LARGE, RGB])[:1], expected.reshape(1, -1), atol=1e-5)


def test_a_large_picture_takes_the_memory_of_one():
    large, predict = np.zeros((1500, 1500, 3), np.uint8), Pixels(3)
    tracemalloc.start()
    try:
        predict(large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * large.nbytes
    assert [images.shape for images in predict.got] == [(1, 8, 8, 3)]


def test_four_programs_serve_any_number_of_pictures():
    """Less than half of what the network computes is padding."""
    sizes = {}
    for count in (1, 2, 4, 5, 8, 9, 16, 17, 37, 128, 129, 300):
        predict = Pixels(1)
        assert len(predict(np.zeros((count, 8, 8), np.uint8))) == count
        assert sum(len(images) for images in predict.got) < 2 * count
        (sizes[count],) = {len(images) for images in predict.got}
    assert list(sizes.values()) == [1, 1, 1, 8, 8, 8, 8, 32, 32, 32, 256, 256]


def test_a_row_does_not_depend_on_the_others():
    """A real network: alone, among others, and resized."""
    model = create_model(ARCH, 4, stem="small")
    variables = jax.device_get(model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    predict = Predictor(model, variables, DataInfo("own", tuple("abcd"), (8, 8, 3), 0), Preprocess((8, 8)))
    found = predict(STACK)
    assert np.ptp(found, 0).max() > 1e-3
    for i, picture in enumerate(STACK):
        np.testing.assert_allclose(predict(picture), found[i : i + 1], atol=1e-5)
    np.testing.assert_allclose(predict([LARGE, STACK[0]])[1:], found[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((28, 28, 2), np.uint8), r"\(28, 28, 2\): .* a picture has 1 \(gray\), 3 \(RGB\) or 4 \(RGBA\)"),
        (np.zeros((28, 30, 5), np.uint8), r"for 28 gray pictures of 30x5 pixels give \(N, H, W, 1\)"),
        ([np.zeros((28, 28, 2), np.uint8)], r"picture 0 of shape \(28, 28, 2\): this network takes"),
        ("a.png", "images a.png: a path is no picture; open it with PIL.Image.open"),
        (["a.png", "b.png"], "picture 0 a.png: a path is no picture; .* use the command predict"),
        ([GRAY, Path("b.png")], "picture 1 b.png: a path is no picture"),
        (b"a.png", "images b'a.png': a path is no picture"),
        (None, r"images None: no numbers; give an array \(N, H, W, C\), a picture of Pillow, or a list"),
        ([None, None], r"images \[None, None\]: no numbers"),
        ([GRAY, None], "picture 1 None: no numbers"),
        ({"image": GRAY}, "images {'image': .*: no numbers"),
        (np.array([["a"]]), "no numbers"),
        (np.full((8, 8), np.nan), "floating images have NaN values; replace these by numbers"),
        ([GRAY, np.full((8, 8), np.nan)], "floating picture 1 have NaN values"),
        (np.full((8, 8), 2.0), r"floating images, from 2 to 2, must lie in \[0, 1\]; divide by 255"),
        (np.zeros((8, 8), bool), "images of dtype bool: use uint8"),
    ],
)
def test_anything_else_is_refused_in_one_line(images, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Pixels(1)(images)
    assert "\n" not in str(caught.value)


def test_a_narrow_network_takes_narrow_pictures():
    """The width of the training images tells a stack from channels."""
    narrow = np.zeros((9, 9, 2), np.uint8)
    assert Pixels(1, (9, 2))(narrow).shape == (9, 18)
