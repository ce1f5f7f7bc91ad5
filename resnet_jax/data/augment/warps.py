"""Augmentations that turn, shift and enlarge an image by fractions of a pixel."""

import dataclasses

import jax
from jax import numpy as jnp

from resnet_jax.data.augment.options import settle_positive, settle_real
from resnet_jax.data.augment.rectangles import first_that_fits, sides


@dataclasses.dataclass(frozen=True)
class rotate:
    """A rotation about the centre by up to `degrees` either way, bilinear; what enters is 0."""

    degrees: float = 10.0

    def __post_init__(self) -> None:
        settle_real(self, "degrees", 0, 180)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        bound = self.degrees * jnp.pi / 180
        return warp(image, turn(jax.random.uniform(key, (), minval=-bound, maxval=bound)), jnp.zeros(2))


@dataclasses.dataclass(frozen=True)
class shift:
    """A shift by up to `pixels` in each direction, in fractions of a pixel, bilinear; what enters is 0."""

    pixels: float = 2.0

    def __post_init__(self) -> None:
        settle_real(self, "pixels", 0)

    @property
    def reach(self) -> float:
        """The largest shift; it must be less than the height and the width."""
        return self.pixels

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        by = jax.random.uniform(key, (2,), minval=-self.pixels, maxval=self.pixels)
        return warp(image, jnp.eye(2), by)


@dataclasses.dataclass(frozen=True)
class resized_crop:
    """A part of the image of random size, shape and place, enlarged to the whole size, bilinear.

    min_area: the least share of the image; the most is 1. aspect: the height of the part by its width, relative to the
    image's, lies between aspect and 1 / aspect; the logarithm is uniform. Source: arXiv:1409.4842, section 6.
    """

    min_area: float = 0.08
    aspect: float = 0.75

    def __post_init__(self) -> None:
        settle_real(self, "min_area", 0, 1)
        settle_positive(self, "aspect", 1)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        of_size, of_place = jax.random.split(key)
        height, width, _ = image.shape
        scale = jnp.stack(first_that_fits(*sides(of_size, (1, 1), (self.min_area, 1), self.aspect), (1, 1)))
        # The centres of the outermost pixels stay inside the image, so that no zeros from outside are mixed in.
        free = (1 - scale) * jnp.array([height - 1, width - 1]) / 2
        return warp(image, jnp.diag(scale), free * jax.random.uniform(of_place, (2,), minval=-1))


def turn(angle: jax.Array) -> jax.Array:
    """The matrix (2, 2) of a rotation, for coordinates (down, right). angle: radians, counterclockwise."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])


def warp(image: jax.Array, matrix: jax.Array, offset: jax.Array) -> jax.Array:
    """The image whose pixel p is the pixel matrix @ p + offset of the old one, bilinear; outside of it is 0.

    image: (H, W, C); p = (down, right) from the centre. The identity matrix and no offset leave the image, exactly.
    """
    height, width, channels = image.shape
    centre = jnp.array([height - 1, width - 1]) / 2
    down, right = jnp.meshgrid(jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij")
    y = matrix[0, 0] * down + matrix[0, 1] * right + offset[0] + centre[0]
    x = matrix[1, 0] * down + matrix[1, 1] * right + offset[1] + centre[1]
    top, left = jnp.floor(y), jnp.floor(x)
    pixels = image.reshape(-1, channels)  # one index for each pixel: the gather is twice as fast as with two
    total = jnp.zeros_like(image)
    for row, of_row in ((top, top + 1 - y), (top + 1, y - top)):
        for column, of_column in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            value = pixels[index.astype(jnp.int32).ravel()].reshape(image.shape)
            total += jnp.where(inside, of_row * of_column, 0)[..., None] * value
    return total
