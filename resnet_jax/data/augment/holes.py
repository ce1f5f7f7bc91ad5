"""Augmentations that cover a rectangle of the image."""

import dataclasses
from typing import ClassVar, Literal

import jax
from jax import lax
from jax import numpy as jnp

from resnet_jax.data.augment.options import settle_choice, settle_positive, settle_real, settle_whole
from resnet_jax.data.augment.rectangles import first_that_fits, rectangle, sides
from resnet_jax.errors import ConfigError

Fill = Literal["random", "mean", "zero"]


@dataclasses.dataclass(frozen=True)
class erasing:
    """A rectangle of random size and place is filled, with the given probability.

    min_area, max_area: its share of the image. aspect: its height by its width lies between aspect and 1 / aspect; the
    logarithm is uniform. fill: random values for each pixel and channel, the image's own mean of each channel, or zero.
    Source: arXiv:1708.04896.
    """

    probability: float = 0.5
    min_area: float = 0.02
    max_area: float = 0.4
    aspect: float = 0.3
    fill: Fill = "random"

    def __post_init__(self) -> None:
        settle_real(self, "probability", 0, 1)
        settle_real(self, "min_area", 0, 1)
        settle_real(self, "max_area", 0, 1)
        settle_positive(self, "aspect", 1)
        settle_choice(self, "fill", Fill)
        if self.min_area > self.max_area:
            raise ConfigError(f"erasing: min_area {self.min_area:g} is more than max_area {self.max_area:g}")

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        of_size, of_place, of_fill, of_use = jax.random.split(key, 4)
        height, width = self._size(of_size, image.shape)
        free = jnp.stack([image.shape[0] - height, image.shape[1] - width]) + 1
        top, left = jnp.floor(jax.random.uniform(of_place, (2,)) * free)
        covered = rectangle(image.shape, top, left, height, width)
        return jnp.where(covered & jax.random.bernoulli(of_use, self.probability), self._fill(of_fill, image), image)

    def _size(self, key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Height and width: the first of several that fit."""
        height, width = sides(key, shape, (self.min_area, self.max_area), self.aspect)
        return first_that_fits(jnp.round(height), jnp.round(width), shape)

    def _fill(self, key: jax.Array, image: jax.Array) -> jax.Array:
        if self.fill == "random":
            return random_bytes(key, image.shape).astype(image.dtype) / 255
        return image.mean((0, 1)) if self.fill == "mean" else jnp.zeros_like(image)


def random_bytes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform bytes of this shape. Each random number of 32 bits is used for four of them: a quarter of the time."""
    size = shape[0] * shape[1] * shape[2]
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    return lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(shape)


@dataclasses.dataclass(frozen=True)
class cutout:
    """A square of `size` pixels becomes 0. Its centre is any pixel, so parts of it may lie outside of the image.

    Source: arXiv:1708.04552.
    """

    size: int
    moves_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle_whole(self, "size", 0)

    @property
    def reach(self) -> int:
        """The size; it must be less than the height and the width."""
        return self.size

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
        top, left = centre - self.size // 2
        return jnp.where(rectangle(image.shape, top, left, self.size, self.size), jnp.zeros_like(image), image)
