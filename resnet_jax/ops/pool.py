"""Two-dimensional max-pooling."""

import jax
from jax import lax
from jax import numpy as jnp


def max_pool(
    x: jax.Array,
    window: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (2, 2),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
) -> jax.Array:
    """The maximum of each window; what is padded never wins.

    x: (N, H, W, C) -> (N, H', W', C). Where values tie, the first of them gets the whole gradient.
    """
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))
