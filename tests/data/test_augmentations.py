"""Each augmentation of one image: against numpy, scipy and Pillow, and by statistics over many draws."""

import math
from typing import Any

import jax
import numpy as np
import pytest
import scipy.ndimage
from jax import numpy as jnp
from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.data.augment import (
    AUGMENTATIONS,
    Mix,
    Preprocess,
    Source,
    alternating_flip,
    brightness,
    contrast,
    crop,
    cutout,
    erasing,
    flip,
    rand_augment,
    resized_crop,
    rotate,
    shift,
)
from resnet_jax.data.augment.holes import random_bytes
from resnet_jax.data.augment.random_ops import MOVES, TONES, stretched
from resnet_jax.data.augment.tones import GREY
from resnet_jax.data.augment.warps import turn, warp
from resnet_jax.errors import ConfigError

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 12, 10
DRAWS = 3000
KEYS = jax.random.split(jax.random.key(7), DRAWS)
COLOUR = RNG.random((HEIGHT, WIDTH, 3), np.float32)
GREYS = COLOUR[..., :1]
# one of each that works on a single image, at strong settings
EXAMPLES = (
    flip,
    crop(3),
    crop(3, "reflect"),
    resized_crop(0.2, 0.5),
    rotate(40),
    shift(3.5),
    brightness(0.8),
    contrast(0.8),
    rand_augment(3, 30),
    erasing(1),
    erasing(1, fill="mean"),
    erasing(1, fill="zero"),
    cutout(5),
)
# settings that leave every image as it is
IDENTITIES = (
    crop(0),
    crop(0, "reflect"),
    resized_crop(1, 1),
    rotate(0),
    shift(0),
    brightness(0),
    contrast(0),
    erasing(0),
    cutout(0),
)


def draws(function, image: np.ndarray = COLOUR, keys: jax.Array = KEYS) -> np.ndarray:
    """One image, augmented with each key."""
    return np.asarray(jax.jit(jax.vmap(function, (0, None)))(keys, jnp.asarray(image)))


def test_every_augmentation_of_the_table_is_tested():
    mixes = {name for name, made in AUGMENTATIONS.items() if isinstance(made, type) and issubclass(made, Mix)}
    tested = {getattr(example, "__name__", type(example).__name__) for example in EXAMPLES}
    assert set(AUGMENTATIONS) == tested | mixes | {"alternating_flip"}


@pytest.mark.parametrize("image", [pytest.param(GREYS, marks=pytest.mark.thorough), COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("function", EXAMPLES, ids=lambda function: getattr(function, "__name__", repr(function)))
def test_shape_range_and_determinism(function, image):
    out = draws(function, image, KEYS[:100])
    assert out.shape == (100, *image.shape)
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 1
    np.testing.assert_array_equal(draws(function, image, KEYS[:100]), out)
    assert len(np.unique(out.reshape(100, -1), axis=0)) > 1  # another key, another image


@pytest.mark.parametrize("function", IDENTITIES, ids=lambda function: getattr(function, "__name__", repr(function)))
def test_a_setting_that_changes_nothing(function):
    np.testing.assert_array_equal(draws(function, keys=KEYS[:50]), np.broadcast_to(COLOUR, (50, *COLOUR.shape)))


# --- moves


def batch(epoch: int, keys: jax.Array, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """Whether each row is mirrored in a step of an epoch."""
    images = jnp.asarray(np.broadcast_to(COLOUR, (500, *COLOUR.shape)))
    source = Source(lambda rows: (images[rows], rows), 500, 0, seed, epoch)
    out, _ = Preprocess(augment=(alternating_flip,)).batch(keys, jnp.asarray(rows), source)
    mirrored = (np.asarray(out) == COLOUR[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (np.asarray(out) == COLOUR).all((1, 2, 3))).all()
    return mirrored


def test_an_alternating_flip_shows_both_sides_in_turn():
    """The side of a row depends on the seed and the epoch, not on the step nor on the place in the batch."""
    rows = RNG.permutation(500)
    first = batch(0, KEYS[:500], rows)
    assert abs(first.mean() - 0.5) < 4 * math.sqrt(0.25 / 500)
    np.testing.assert_array_equal(batch(0, KEYS[500:1000], rows[::-1]), first[::-1])
    np.testing.assert_array_equal(batch(1, KEYS[:500], rows), ~first)
    np.testing.assert_array_equal(batch(2, KEYS[:500], rows), first)
    other = batch(0, KEYS[:500], rows, seed=1) == first
    assert abs(other.mean() - 0.5) < 4 * math.sqrt(0.25 / 500)


# --- holes


def holes(out: np.ndarray) -> np.ndarray:
    """(N, 4): top, left, height and width of the rectangle that differs from the image; 0 where nothing does."""
    found = []
    for image in out:
        rows, columns = np.nonzero((image != COLOUR).any(-1))
        if not len(rows):
            found.append((0, 0, 0, 0))
            continue
        top, left = rows.min(), columns.min()
        height, width = rows.max() + 1 - top, columns.max() + 1 - left
        assert len(rows) == height * width  # all of the rectangle is filled
        found.append((top, left, height, width))
    return np.array(found)


def test_erasing_draws_area_aspect_and_place():
    function = erasing(0.7, min_area=0.1, max_area=0.3, aspect=0.5)
    found = holes(draws(function))
    used = found[found[:, 2] > 0]
    assert abs(len(used) / DRAWS - 0.7) < 4 * math.sqrt(0.21 / DRAWS)
    area = used[:, 2] * used[:, 3] / (HEIGHT * WIDTH)
    assert 0.05 < area.min() < 0.13  # sides are rounded to whole pixels
    assert 0.27 < area.max() < 0.37
    assert abs(area.mean() - 0.2) < 0.01
    log_aspect = np.log(used[:, 2] / used[:, 3])
    assert abs(log_aspect.mean()) < 0.03  # as often tall as wide
    assert np.abs(log_aspect).max() < math.log(2) + 0.4
    assert abs(log_aspect.std() - math.log(2) / math.sqrt(3)) < 0.06
    for top, side, whole in ((used[:, 0], used[:, 2], HEIGHT), (used[:, 1], used[:, 3], WIDTH)):
        free = whole - side
        assert (top <= free).all()
        assert abs((top[free > 0] / free[free > 0]).mean() - 0.5) < 0.03  # uniform over the places
        assert {0, 1} <= set((top[free > 0] / free[free > 0]).tolist())


def test_what_erasing_fills_in():
    def filled(fill):
        out = draws(erasing(1, 0.2, 0.3, fill=fill), keys=KEYS[:300])
        return out[(out != COLOUR).any(-1)]

    assert (filled("zero") == 0).all()
    np.testing.assert_allclose(filled("mean"), np.broadcast_to(COLOUR.mean((0, 1)), filled("mean").shape), rtol=1e-5)
    random = filled("random")
    assert abs(random.mean() - 0.5) < 4 * math.sqrt(1 / 12 / random.size)
    assert abs(random.std() - math.sqrt(1 / 12)) < 0.01
    assert abs(np.corrcoef(random[:, 0], random[:, 1])[0, 1]) < 0.03  # the channels are drawn apart


def test_random_bytes_are_uniform():
    counts = np.bincount(np.asarray(random_bytes(KEYS[0], (101, 101, 3))).ravel(), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 4 * math.sqrt(2 * 255)


def test_cutout_is_a_square_around_any_pixel():
    size = 5
    out = draws(cutout(size), np.ones_like(COLOUR), KEYS)
    wanted = set()
    for y in range(HEIGHT):
        for x in range(WIDTH):
            image = np.ones_like(COLOUR)
            image[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = 0
            wanted.add(image.tobytes())
    found = [image.tobytes() for image in out]
    assert set(found) == wanted
    counts = np.array([found.count(image) for image in wanted])
    expected = DRAWS / len(wanted)
    assert ((counts - expected) ** 2 / expected).sum() < len(wanted) - 1 + 4 * math.sqrt(2 * len(wanted))


def test_cutout_and_flips_take_bytes():
    image = (COLOUR * 255).astype(np.uint8)
    for function in (cutout(3), flip, crop(2, "reflect")):
        assert draws(function, image, KEYS[:3]).dtype == np.uint8


# --- warps


@pytest.mark.parametrize("shape", [(12, 10, 3), (9, 9, 1)])
def test_a_warp_is_scipys(shape):
    """Bilinear, with zeros around the image."""
    image = RNG.random(shape).astype(np.float32)
    matrix = np.array([[0.9, 0.4], [-0.3, 1.1]], np.float32)
    offset = np.array([1.3, -2.4], np.float32)
    centre = (np.array(shape[:2]) - 1) / 2
    start: Any = centre - matrix @ centre + offset  # for SciPy's stub an offset is one number
    out = warp(jnp.asarray(image), jnp.asarray(matrix), jnp.asarray(offset))
    for channel in range(shape[2]):
        expected = scipy.ndimage.affine_transform(
            image[..., channel].astype(np.float64), matrix, start, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(out[..., channel], expected, atol=1e-5)


def test_a_quarter_turn_is_numpys():
    image = RNG.random((9, 9, 2)).astype(np.float32)
    turned = warp(jnp.asarray(image), turn(jnp.float32(jnp.pi / 2)), jnp.zeros(2))
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-5)


def test_the_angles_of_rotations():
    """Read from where a bright point beside the centre goes."""
    image = np.zeros((21, 21, 1), np.float32)
    image[10, 18] = 1
    out = draws(rotate(30), image)[..., 0]
    y, x = np.mgrid[:21, :21] - 10
    angles = np.degrees(np.arctan2(-(out * y).sum((1, 2)), (out * x).sum((1, 2))))
    assert 28 < angles.max() < 31.5
    assert -31.5 < angles.min() < -28
    assert abs(angles.mean()) < 4 * 30 / math.sqrt(3 * DRAWS)
    assert abs(angles.std() - 30 / math.sqrt(3)) < 0.6


def test_the_parts_that_resized_crop_enlarges():
    """Read from two ramps, down and right. A part of a ramp is a ramp, so bilinear sampling is exact."""
    down, right = np.mgrid[:20, :31].astype(np.float32) / [[[19]], [[30]]]
    image = np.stack([down, right], -1).astype(np.float32)
    out = draws(resized_crop(0.2, 0.5), image)
    height = out[:, -1, 0, 0] - out[:, 0, 0, 0]
    width = out[:, 0, -1, 1] - out[:, 0, 0, 1]
    rows, columns = np.linspace(0, 1, 20)[:, None], np.linspace(0, 1, 31)[None]
    corner = out[:, 0, 0]
    np.testing.assert_allclose(
        out[..., 0], (corner[:, 0, None, None] + height[:, None, None] * rows) + 0 * columns, atol=1e-5
    )
    np.testing.assert_allclose(
        out[..., 1], (corner[:, 1, None, None] + width[:, None, None] * columns) + 0 * rows, atol=1e-5
    )
    area, aspect = height * width, height / width
    assert 0.2 - 1e-4 < area.min() < 0.22
    assert 0.95 < area.max() <= 1 + 1e-4
    assert 0.5 - 1e-3 < aspect.min() < 0.53
    assert 1.9 < aspect.max() < 2 + 1e-3
    assert abs(np.log(aspect).mean()) < 4 * np.log(aspect).std() / math.sqrt(DRAWS)
    # the place of the part: 0 is at the edge above or left, 1 below or right
    share = corner / np.maximum(1 - np.stack([height, width], 1), 1e-3)
    assert (np.abs(share.mean(0) - 0.5) < 0.03).all()
    assert (np.abs(share.std(0) - 1 / math.sqrt(12)) < 0.03).all()


def test_the_lengths_of_shifts():
    """Read from the centre of gravity of a point; down and right are drawn apart."""
    image = np.zeros((21, 21, 1), np.float32)
    image[10, 10] = 1
    out = draws(shift(2.5), image)[..., 0]
    np.testing.assert_allclose(out.sum((1, 2)), 1, atol=1e-5)
    y, x = np.mgrid[:21, :21] - 10
    moved = np.stack([(out * y).sum((1, 2)), (out * x).sum((1, 2))])
    assert (np.abs(moved) <= 2.5 + 1e-5).all()
    assert (np.abs(moved.mean(1)) < 4 * 2.5 / math.sqrt(3 * DRAWS)).all()
    assert (np.abs(moved.std(1) - 2.5 / math.sqrt(3)) < 0.06).all()
    assert abs(np.corrcoef(moved)[0, 1]) < 4 / math.sqrt(DRAWS)


# --- tones


@pytest.mark.parametrize("image", [GREYS, COLOUR], ids=["grey", "colour"])
def test_the_factors_of_brightness_and_contrast(image):
    image = 0.4 + 0.2 * image  # nothing is clipped
    bright = draws(brightness(0.5), image) / image
    factors = bright.mean((1, 2, 3))
    np.testing.assert_allclose(bright, np.broadcast_to(factors[:, None, None, None], bright.shape), rtol=1e-4)
    grey = (image @ np.array(GREY)).mean() if image.shape[-1] == 3 else image.mean()
    apart = np.abs(image - grey) > 0.01
    ratios = ((draws(contrast(0.5), image) - grey) / (image - grey))[:, apart]
    spread = ratios.mean(1)
    np.testing.assert_allclose(ratios, np.broadcast_to(spread[:, None], ratios.shape), rtol=1e-3)
    for drawn in (factors, spread):
        assert 0.5 - 1e-3 < drawn.min() < 0.52
        assert 1.48 < drawn.max() < 1.5 + 1e-3
        assert abs(drawn.mean() - 1) < 4 * 0.5 / math.sqrt(3 * DRAWS)


# --- RandAugment


BYTES = (COLOUR * 255).astype(np.uint8)
STRENGTH = 0.3  # magnitude 9


def pillows(name: str, strength: float) -> np.ndarray:
    """An operation of Pillow's as torchvision calls it, as bytes."""
    image = Image.fromarray(BYTES)
    factor = 1 + 0.9 * strength
    made = {
        "brightened": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "contrasted": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "coloured": lambda: ImageEnhance.Color(image).enhance(factor),
        "sharpened": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "posterized": lambda: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
        "solarized": lambda: ImageOps.solarize(image, math.floor(255 * (1 - abs(strength))) + 1),
        "stretched": lambda: ImageOps.autocontrast(image),
        "unchanged": lambda: image,
    }[name]()
    return np.asarray(made).astype(int)


@pytest.mark.parametrize("strength", [-1.0, -STRENGTH, STRENGTH, 1.0])
def test_the_tones_are_pillows(strength):
    """To two of 255 levels, which Pillow's rounding explains."""
    for tone in TONES:
        out = np.asarray(tone(jnp.asarray(BYTES) / 255, jnp.float32(strength))) * 255
        np.testing.assert_allclose(out, pillows(tone.__name__, strength), atol=2.1, err_msg=tone.__name__)


def test_the_moves_by_hand():
    """The matrices of scipy's affine transformation: a point of the new image -> of the old one."""
    made = {move.__name__: move(jnp.float32(STRENGTH), 20, 10) for move in MOVES}
    angle = math.radians(9)
    wanted = {
        "turned": ([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], [0, 0]),
        "sheared_down": ([[1, 0.09], [0, 1]], [0, 0]),
        "sheared_right": ([[1, 0], [0.09, 1]], [0, 0]),
        "moved_down": ([[1, 0], [0, 1]], [0.45 * 20 * 0.3, 0]),
        "moved_right": ([[1, 0], [0, 1]], [0, 0.45 * 10 * 0.3]),
    }
    assert set(made) == set(wanted)
    for name, (matrix, offset) in wanted.items():
        np.testing.assert_allclose(made[name][0], matrix, atol=1e-6)
        np.testing.assert_allclose(made[name][1], offset, atol=1e-6)


@pytest.mark.parametrize("image", [GREYS, COLOUR], ids=["grey", "colour"])
def test_each_operation_is_drawn_as_often(image):
    tones = TONES if image.shape[-1] == 3 else TONES[:-1]
    strengths = (jnp.float32(STRENGTH), jnp.float32(-STRENGTH))
    ways = [warp(jnp.asarray(image), *move(strength, HEIGHT, WIDTH)) for move in MOVES for strength in strengths]
    ways += [tone(jnp.asarray(image), strength) for tone in tones for strength in strengths]
    out = draws(rand_augment(1, 9), image)
    distance = np.stack([np.abs(out - np.asarray(way)).max((1, 2, 3)) for way in ways])
    assert distance.min(0).max() < 1e-4  # each is one of them
    counts = np.bincount(distance.argmin(0) // 2, minlength=len(ways) // 2)
    expected = DRAWS / (len(ways) // 2)
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) - 1 + 4 * math.sqrt(2 * len(counts))
    signed = [i for i, way in enumerate(ways) if not np.allclose(way, ways[i ^ 1], atol=1e-3)]
    assert set(signed) <= set(distance.argmin(0).tolist())  # of each, both signs


def test_magnitude_zero_leaves_all_but_autocontrast():
    image = 0.2 + 0.6 * COLOUR
    levels = np.round(image * 255).astype(np.float32) / 255  # posterize rounds to bytes
    full = np.asarray(stretched(jnp.asarray(levels), jnp.zeros(())))
    out = draws(rand_augment(1, 0), levels, KEYS[:300])
    same = np.abs(out - levels).max((1, 2, 3)) < 1e-6
    assert same.mean() > 0.8
    assert np.abs(out[~same] - full).max() < 1e-6


def test_two_operations_are_one_after_the_other():
    """By the key of each."""
    keys = [jax.random.split(key, 2) for key in KEYS[:40]]
    first, second = (jnp.stack([pair[i] for pair in keys]) for i in (0, 1))
    one = jax.vmap(rand_augment(1, 12)._one)
    images = jnp.broadcast_to(jnp.asarray(COLOUR), (40, *COLOUR.shape))
    np.testing.assert_allclose(draws(rand_augment(2, 12), keys=KEYS[:40]), one(second, one(first, images)), atol=1e-5)


# --- options


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (crop, {"padding": -1}, "crop: padding -1 must be at least 0"),
        (crop, {"padding": 1.5}, "crop: padding 1.5: give a whole number"),
        (crop, {"padding": 2, "mode": "mirror"}, "unknown crop mode 'mirror': choose one of reflect, zeros"),
        (crop, {"padding": 2, "mode": 3}, "crop: mode 3: give one of zeros, reflect"),
        (resized_crop, {"min_area": 1.5}, "resized_crop: min_area 1.5 is out of range: it must be from 0 to 1"),
        (resized_crop, {"aspect": 0}, "resized_crop: aspect 0 is out of range: it must be above 0 and at most 1"),
        (resized_crop, {"aspect": 1.5}, "resized_crop: aspect 1.5 is out of range: it must be above 0 and at most 1"),
        (rotate, {"degrees": 181}, "rotate: degrees 181 is out of range: it must be from 0 to 180"),
        (shift, {"pixels": -1}, "shift: pixels -1 is out of range: it must be finite and at least 0"),
        (shift, {"pixels": math.inf}, "shift: pixels inf is out of range"),
        (brightness, {"amount": 1.1}, "brightness: amount 1.1 is out of range: it must be from 0 to 1"),
        (contrast, {"amount": math.nan}, "contrast: amount nan is out of range"),
        (contrast, {"amount": "0.1"}, "contrast: amount 0.1: give a number"),
        (erasing, {"probability": 2}, "erasing: probability 2 is out of range: it must be from 0 to 1"),
        (erasing, {"min_area": 0.5}, "erasing: min_area 0.5 is more than max_area 0.4"),
        (erasing, {"aspect": 0}, "erasing: aspect 0 is out of range: it must be above 0 and at most 1"),
        (erasing, {"fill": "blue"}, "unknown erasing fill 'blue'"),
        (cutout, {"size": -2}, "cutout: size -2 must be at least 0"),
        (rand_augment, {"num_ops": 0}, "rand_augment: num_ops 0 must be at least 1"),
        (rand_augment, {"magnitude": 31}, "rand_augment: magnitude 31 is out of range: it must be from 0 to 30"),
    ],
)
def test_an_option_out_of_range(make, options, message):
    with pytest.raises(ConfigError) as caught:
        make(**options)
    assert str(caught.value).startswith(message)


def test_numbers_of_numpy_become_plain():
    two: Any = np.int64(2)
    half: Any = np.float32(0.5)
    assert crop(two) == crop(2)
    assert erasing(half) == erasing(0.5)
    assert type(erasing(half).probability) is float
