"""Preprocessing against numpy and bilinear interpolation by hand."""

from typing import Literal

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from resnet_jax.data.augment import Augmentation, Preprocess, Source, crop, flip, resize, unchanged
from resnet_jax.errors import ConfigError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (600, 4, 5, 2), np.uint8)  # no 0, so that what is padded shows
KEYS = jax.random.split(jax.random.key(0), len(IMAGES))


def augmented(augment: tuple[Augmentation, ...], images: np.ndarray = IMAGES, keys: jax.Array = KEYS) -> np.ndarray:
    """Bytes again."""
    out = train(Preprocess(augment=augment), keys, jnp.asarray(images))
    return np.asarray((out * 255).round().astype(jnp.uint8))


def train(preprocess: Preprocess, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Images as a step makes them, each with a key of its own."""
    source = Source(lambda rows: (images[rows], rows), len(images), 0)
    return preprocess.batch(keys, jnp.arange(len(images)), source)[0]


def ways(image: np.ndarray, mirror: bool, padding: int, mode: Literal["constant", "reflect"]) -> list[np.ndarray]:
    """All that augmentation may make of an image, in numpy."""
    height, width, _ = image.shape
    out = []
    for mirrored in (image, image[:, ::-1])[: 1 + mirror]:
        padded = np.pad(mirrored, ((padding, padding), (padding, padding), (0, 0)), mode)
        corners = [(i, j) for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
        out += [padded[i : i + height, j : j + width] for i, j in corners]
    return out


@pytest.mark.parametrize("edge", ["zeros", "reflect"])
@pytest.mark.parametrize(("mirror", "padding"), [(True, 0), (False, 1), (False, 2), (True, 1)])
def test_each_way_to_flip_and_crop_is_drawn_as_often(mirror, padding, edge):
    out = augmented((flip if mirror else unchanged, crop(padding, edge)))
    mode = "constant" if edge == "zeros" else edge
    found = []
    for image, new in zip(IMAGES, out, strict=True):
        (way,) = (i for i, way in enumerate(ways(image, mirror, padding, mode)) if np.array_equal(way, new))
        found.append(way)
    num_ways = (1 + mirror) * (2 * padding + 1) ** 2
    expected = len(IMAGES) / num_ways
    counts = np.bincount(found, minlength=num_ways)
    assert len(counts) == num_ways
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < num_ways - 1 + 4 * np.sqrt(2 * num_ways)  # its mean, and 4 standard deviations


def test_an_image_does_not_depend_on_its_neighbours():
    augment = (flip, crop(2))
    whole, some = augmented(augment), [5, 3, 77]
    np.testing.assert_array_equal(augmented(augment, IMAGES[some], KEYS[jnp.array(some)]), whole[some])


def test_flip_and_crop_are_drawn_apart():
    """A crop is the same with and without a flip before it, and the other way round."""
    both = augmented((flip, crop(1)))
    flips = augmented((flip, unchanged))
    again = augmented((unchanged, crop(1)), flips)
    np.testing.assert_array_equal(again, both)


def test_a_function_of_ones_own_sees_the_image_in_zero_to_one():
    """After one that moves pixels, and before another."""

    def half(key, image):
        assert image.dtype == jnp.float32
        return image / 2

    alone = train(Preprocess(augment=(flip, unchanged, crop(1))), KEYS, jnp.asarray(IMAGES))
    halved = train(Preprocess(augment=(flip, half, crop(1))), KEYS, jnp.asarray(IMAGES))
    np.testing.assert_allclose(halved, alone / 2, atol=1e-7)


def test_a_function_that_changes_the_shape():
    def narrow(key, image):
        return image[:, 1:]

    with pytest.raises(ConfigError, match=r"augment: narrow returns shape \(4, 4, 2\) for an image \(4, 5, 2\)"):
        train(Preprocess(augment=(narrow,)), KEYS, jnp.asarray(IMAGES))


def test_training_without_augmentation_is_evaluation():
    preprocess = Preprocess((6, 6), (0.3, 0.2))
    images = jnp.asarray(IMAGES[:8])
    np.testing.assert_array_equal(train(preprocess, KEYS[:8], images), preprocess.evaluate(images))


def test_bytes_become_zero_to_one_and_are_normalised():
    images = np.array([0, 51, 102, 255], np.uint8).reshape(1, 2, 2, 1)
    plain = Preprocess((2, 2)).evaluate(jnp.asarray(images))
    assert plain.dtype == jnp.float32
    np.testing.assert_allclose(plain.ravel(), [0, 0.2, 0.4, 1], atol=1e-7)
    normal = Preprocess((2, 2), (0.4, 0.5)).evaluate(jnp.asarray(images))
    np.testing.assert_allclose(normal.ravel(), [-0.8, -0.4, 0, 1.2], atol=1e-6)


def test_the_same_size_is_left_alone():
    x = jnp.asarray(RNG.random((3, 7, 7, 2), np.float32))
    np.testing.assert_array_equal(resize(x, (7, 7)), x)


def test_twice_the_size_by_hand():
    """Pixel centres at 0.5: the new ones lie at -0.25, 0.25, 0.75 and 1.25 of the old; beyond the edge is the edge."""
    x = jnp.array([[0.0, 1.0], [2.0, 4.0]]).reshape(1, 2, 2, 1)
    rows = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = rows @ np.array([[0, 1], [2, 4]]) @ rows.T
    np.testing.assert_allclose(resize(x, (4, 4))[0, :, :, 0], expected, atol=1e-6)


def test_half_the_size_by_hand():
    """Smaller means antialiased, as torchvision does it: a triangle two pixels wide, its weights summing to 1."""
    x = RNG.random((1, 4, 4, 1)).astype(np.float32)
    rows = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    np.testing.assert_allclose(resize(jnp.asarray(x), (2, 2))[0, :, :, 0], rows @ x[0, :, :, 0] @ rows.T, atol=1e-6)


def test_fashion_mnist_at_the_seeds_size():
    """28 -> 96 against linear interpolation of numpy, one axis after the other."""
    x = RNG.random((2, 28, 28, 1)).astype(np.float32)
    at = (np.arange(96) + 0.5) * 28 / 96 - 0.5
    matrix = np.stack([np.interp(at, np.arange(28), row) for row in np.eye(28)], 1)
    expected = np.einsum("ij,njkc,lk->nilc", matrix, x, matrix)
    np.testing.assert_allclose(resize(jnp.asarray(x), (96, 96)), expected, atol=1e-5)
