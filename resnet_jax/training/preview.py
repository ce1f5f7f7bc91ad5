"""Training images as a step augments them, for people to look at."""

import dataclasses

import jax
import numpy as np
from jax import numpy as jnp

from resnet_jax.data import ImageDataset
from resnet_jax.data.augment import Preprocess, Source
from resnet_jax.training.step import Dataset, image_keys


def preview(
    preprocess: Preprocess, data: ImageDataset, rows: np.ndarray, *, seed: int, step: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a step's batch and their labels, as training_batch makes them, but not normalised.

    rows (N,): of the images, in the order of the batch. Returns images (N, H, W, C) float32 in [0, 1], and labels (N,)
    or distributions (N, K). The whole data set goes to the device only if images are mixed with others.
    """
    preprocess = dataclasses.replace(preprocess, mean_std=None)
    images, labels = data.train
    if not preprocess.mixes:
        images, labels = images[rows], labels[rows]

    @jax.jit
    def make(held, rows):
        def lookup(rows):
            return held.lookup(rows) if preprocess.mixes else (held.images(jnp.arange(len(rows))), held.labels)

        source = Source(lookup, len(data.train.labels), data.num_classes, seed, epoch)
        return preprocess.batch(image_keys(seed, step, jnp.arange(len(rows))), rows, source)

    return jax.device_get(make(Dataset.of(images, labels), rows))
