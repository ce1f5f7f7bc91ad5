"""Augmentations that mix each image, and its label, with another image of the data set."""

import dataclasses

import jax
from jax import numpy as jnp

from resnet_jax.data.augment.options import settle_positive, settle_real
from resnet_jax.data.augment.rectangles import rectangle

Pair = tuple[jax.Array, jax.Array]  # an image (H, W, C) in [0, 1], and the distribution (K,) of its label


class Mix:
    """A pure function of (key, pair, other pair). It returns a pair whose label is a mixture of the two labels."""

    probability: float

    def __call__(self, key: jax.Array, pair: Pair, other: Pair) -> Pair:
        """One image."""
        raise NotImplementedError

    def _share(self, key: jax.Array, alpha: float) -> jax.Array:
        """The image's own share, from Beta(alpha, alpha); 1 for the images that stay as they are."""
        of_share, of_use = jax.random.split(key)
        return jnp.where(
            jax.random.bernoulli(of_use, self.probability), jax.random.beta(of_share, alpha, alpha), jnp.ones(())
        )


@dataclasses.dataclass(frozen=True)
class mixup(Mix):
    """The weighted mean of two images and of their labels. The weight of the first is drawn from Beta(alpha, alpha).

    probability: the share of images that are mixed. Source: arXiv:1710.09412.
    """

    alpha: float = 0.2
    probability: float = 1.0

    def __post_init__(self) -> None:
        settle_positive(self, "alpha")
        settle_real(self, "probability", 0, 1)

    def __call__(self, key: jax.Array, pair: Pair, other: Pair) -> Pair:
        share = self._share(key, self.alpha)
        image, label = (share * mine + (1 - share) * its for mine, its in zip(pair, other, strict=True))
        return image, label


@dataclasses.dataclass(frozen=True)
class cutmix(Mix):
    """A rectangle of another image is pasted into the image. The labels are weighted by the visible areas.

    The rectangle has the form of the image. Its area is 1 - share, with share from Beta(alpha, alpha), before the
    image's edges cut it; its centre is any pixel. probability: the share of images that are mixed.
    Source: arXiv:1905.04899.
    """

    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        settle_positive(self, "alpha")
        settle_real(self, "probability", 0, 1)

    def __call__(self, key: jax.Array, pair: Pair, other: Pair) -> Pair:
        of_share, of_place = jax.random.split(key)
        height, width, _ = pair[0].shape
        side = jnp.sqrt(1 - self._share(of_share, self.alpha))
        tall, wide = jnp.floor(side * height), jnp.floor(side * width)
        centre = jax.random.randint(of_place, (2,), 0, jnp.array([height, width]))
        pasted = rectangle(pair[0].shape, centre[0] - tall // 2, centre[1] - wide // 2, tall, wide)
        share = 1 - pasted.mean()
        return jnp.where(pasted, other[0], pair[0]), share * pair[1] + (1 - share) * other[1]
