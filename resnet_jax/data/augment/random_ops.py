"""RandAugment: operations drawn at random from a list, all at one magnitude."""

import dataclasses
from collections.abc import Callable

import jax
from jax import lax
from jax import numpy as jnp

from resnet_jax.data.augment.moves import one_of
from resnet_jax.data.augment.options import settle_real, settle_whole
from resnet_jax.data.augment.tones import grey, scaled
from resnet_jax.data.augment.warps import turn, warp

MOST = 30  # the largest magnitude
Matrix = tuple[jax.Array, jax.Array]  # what warp takes
Tone = Callable[[jax.Array, jax.Array], jax.Array]  # an operation on the image, and its signed strength


def turned(strength: jax.Array, height: int, width: int) -> Matrix:
    """By up to 30 degrees."""
    return turn(strength * jnp.pi / 6), jnp.zeros(2)


def sheared_down(strength: jax.Array, height: int, width: int) -> Matrix:
    """Each column moves by up to 0.3 of its distance from the centre."""
    return jnp.eye(2).at[0, 1].set(0.3 * strength), jnp.zeros(2)


def sheared_right(strength: jax.Array, height: int, width: int) -> Matrix:
    """Each row moves by up to 0.3 of its distance from the centre."""
    return jnp.eye(2).at[1, 0].set(0.3 * strength), jnp.zeros(2)


def moved_down(strength: jax.Array, height: int, width: int) -> Matrix:
    """By up to 0.45 of the height."""
    return jnp.eye(2), jnp.stack([0.45 * height * strength, jnp.zeros(())])


def moved_right(strength: jax.Array, height: int, width: int) -> Matrix:
    """By up to 0.45 of the width."""
    return jnp.eye(2), jnp.stack([jnp.zeros(()), 0.45 * width * strength])


def unmoved(strength: jax.Array, height: int, width: int) -> Matrix:
    """The matrix that leaves the image as it is."""
    return jnp.eye(2), jnp.zeros(2)


def unchanged(image: jax.Array, strength: jax.Array) -> jax.Array:
    """The image itself."""
    return image


def brightened(image: jax.Array, strength: jax.Array) -> jax.Array:
    """The image times 0.1 to 1.9."""
    return scaled(image, jnp.zeros(()), 0.9 * strength)


def contrasted(image: jax.Array, strength: jax.Array) -> jax.Array:
    """The differences from the mean grey times 0.1 to 1.9."""
    return scaled(image, grey(image).mean(), 0.9 * strength)


def coloured(image: jax.Array, strength: jax.Array) -> jax.Array:
    """The differences from each pixel's grey times 0.1 to 1.9. A grey image stays as it is."""
    return scaled(image, grey(image), 0.9 * strength)


def sharpened(image: jax.Array, strength: jax.Array) -> jax.Array:
    """The differences from the smoothed image times 0.1 to 1.9. The outermost pixels stay as they are."""
    height, width, _ = image.shape
    # a reduce_window, which XLA does not fuse: shifted images in one loop with warp's gather take twice the time
    box = lax.reduce_window(image, 0.0, lax.add, (3, 3, 1), (1, 1, 1), "SAME")
    smooth = (box + 4 * image) / 13  # the centre counts 5 times, each of its 8 neighbours once
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inner = (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
    return scaled(image, jnp.where(inner, smooth, image), 0.9 * strength)


def posterized(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Only the high bits of each byte are kept: 8 at magnitude 0, 4 at 30."""
    step = 2.0 ** jnp.round(4 * jnp.abs(strength))
    return jnp.floor(jnp.round(image * 255) / step) * step / 255


def solarized(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Values above a threshold are inverted. The threshold is 1 at magnitude 0, and 0 at 30."""
    return jnp.where(image > 1 - jnp.abs(strength), 1 - image, image)


def stretched(image: jax.Array, strength: jax.Array) -> jax.Array:
    """The values of each channel span [0, 1] (autocontrast). The magnitude does not matter."""
    low, high = image.min((0, 1)), image.max((0, 1))
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


MOVES = (turned, sheared_down, sheared_right, moved_down, moved_right)
TONES: tuple[Tone, ...] = (
    brightened,
    contrasted,
    sharpened,
    posterized,
    solarized,
    stretched,
    unchanged,
    coloured,  # last: grey images do not draw it
)


@dataclasses.dataclass(frozen=True)
class rand_augment:
    """`num_ops` operations one after the other, each drawn from a list, at one magnitude from 0 to 30.

    The list: rotation, shear and translation (each of two directions), brightness, contrast, sharpness, posterize,
    solarize, autocontrast, no change, and for images of 3 channels colour. The ranges are torchvision's. The sign of
    the strength is drawn. Equalize is left out. Source: arXiv:1909.13719.
    """

    num_ops: int = 2
    magnitude: float = 9.0

    def __post_init__(self) -> None:
        settle_whole(self, "num_ops", 1)
        settle_real(self, "magnitude", 0, MOST)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        for own in jax.random.split(key, self.num_ops):
            image = self._one(own, image)
        return image

    def _one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """One operation. Under vmap each image computes all of them and keeps one, but is warped only once."""
        of_sign, of_choice = jax.random.split(key)
        strength = self.magnitude / MOST * jax.random.rademacher(of_sign, (), jnp.float32)
        tones = TONES if image.shape[-1] == 3 else TONES[:-1]
        choice = jax.random.randint(of_choice, (), 0, len(MOVES) + len(tones))
        height, width, _ = image.shape
        moves = (*MOVES, unmoved)
        matrix, offset = lax.switch(jnp.minimum(choice, len(MOVES)), moves, strength, height, width)
        toned = lax.switch(jnp.maximum(choice - len(MOVES), 0), tones, image, strength)
        return one_of(choice >= len(MOVES), warp(image, matrix, offset), toned)
