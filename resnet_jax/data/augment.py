"""From the data set's bytes to what the network sees, inside the jitted step."""

import dataclasses

import jax
from jax import lax
from jax import numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What is done to every image, and the augmentation of training images.

    image_size: height and width in pixels. mean_std: of the images in [0, 1], or None to leave them there.
    """

    image_size: int
    mean_std: tuple[float, float] | None = None
    flip: bool = False
    crop_padding: int = 0

    def evaluate(self, images: jax.Array) -> jax.Array:
        """uint8 (N, H, W, C) -> float32 (N, image_size, image_size, C), in [0, 1] or normalised."""
        x = resize(images.astype(jnp.float32) / 255, self.image_size)
        if self.mean_std is None:
            return x
        mean, std = self.mean_std
        return (x - mean) / std

    def train(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """As evaluate, with each image augmented by a key of its own. keys: (N,)."""
        if self.flip or self.crop_padding:
            images = jax.vmap(self._augment)(keys, images)
        return self.evaluate(images)

    def _augment(self, key: jax.Array, image: jax.Array) -> jax.Array:
        flip_key, crop_key = jax.random.split(key)
        if self.flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        if pad := self.crop_padding:
            corner = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            image = lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)
        return image


def resize(x: jax.Array, size: int) -> jax.Array:
    """Bilinear, pixel centres at 0.5, as torchvision's. x: (N, H, W, C) -> (N, size, size, C)."""
    # as fast as two matrix products of our own: 0.8 ms for 128 images from 28 to 96 pixels on 2 CPU cores
    return jax.image.resize(x, (x.shape[0], size, size, x.shape[3]), "bilinear")
