"""Rectangles of an image: which pixels one covers, and how the sides of random ones are drawn."""

import jax
from jax import numpy as jnp

TRIES = 10  # rectangles drawn until one fits into the image; 8 in 10 fit for random erasing


def rectangle(shape: tuple[int, ...], top, left, height, width) -> jax.Array:
    """Where the rectangle covers an image (H, W, C): (H, W, 1) bool. Parts outside of the image are cut off."""
    rows, columns = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


def sides(
    key: jax.Array, shape: tuple[int, ...], area: tuple[float, float], aspect: float
) -> tuple[jax.Array, jax.Array]:
    """Height and width of random rectangles, (TRIES,) each, in pixels, not rounded. They may exceed the image.

    shape: of the image, (H, W, C). area: the least and the largest share of the image; uniform. aspect: height by width
    lies between aspect and 1 / aspect; the logarithm is uniform.
    """
    of_area, of_aspect = jax.random.split(key)
    pixels = jax.random.uniform(of_area, (TRIES,), minval=area[0], maxval=area[1]) * shape[0] * shape[1]
    bound = -jnp.log(aspect)
    ratio = jnp.exp(jax.random.uniform(of_aspect, (TRIES,), minval=-bound, maxval=bound))
    return jnp.sqrt(pixels * ratio), jnp.sqrt(pixels / ratio)


def first_that_fits(height: jax.Array, width: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The first rectangle that fits into an image (H, W, C); if none does, the first one, cut to the image."""
    first = jnp.argmax((height <= shape[0]) & (width <= shape[1]))
    return jnp.minimum(height[first], shape[0]), jnp.minimum(width[first], shape[1])
