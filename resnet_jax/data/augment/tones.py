"""Augmentations of brightness and contrast."""

import dataclasses

import jax
from jax import numpy as jnp

from resnet_jax.data.augment.options import settle_real

GREY = (0.299, 0.587, 0.114)  # the luminance of red, green and blue (ITU-R BT.601), as in PIL and torchvision


@dataclasses.dataclass(frozen=True)
class brightness:
    """The image times a factor from 1 - amount to 1 + amount, clipped to [0, 1]."""

    amount: float = 0.2

    def __post_init__(self) -> None:
        settle_real(self, "amount", 0, 1)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return scaled(image, jnp.zeros(()), drawn(key, self.amount))


@dataclasses.dataclass(frozen=True)
class contrast:
    """The differences from the image's mean grey times a factor from 1 - amount to 1 + amount, clipped to [0, 1]."""

    amount: float = 0.2

    def __post_init__(self) -> None:
        settle_real(self, "amount", 0, 1)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return scaled(image, grey(image).mean(), drawn(key, self.amount))


def drawn(key: jax.Array, amount: float) -> jax.Array:
    """A factor less 1."""
    return jax.random.uniform(key, (), minval=-amount, maxval=amount) if amount else jnp.zeros(())


def scaled(image: jax.Array, centre: jax.Array, more: jax.Array) -> jax.Array:
    """The differences of an image from `centre` times 1 + more, in [0, 1]. For more = 0 it is the image, exactly."""
    return jnp.clip(image + more * (image - centre), 0, 1)


def grey(image: jax.Array) -> jax.Array:
    """(H, W, C) -> (H, W, 1). An image of another number of channels than 3 gets their mean."""
    if image.shape[-1] != len(GREY):
        return image.mean(-1, keepdims=True)
    return (image * jnp.array(GREY)).sum(-1, keepdims=True)
