"""From a finished run to predictions."""

from pathlib import Path

import jax
import numpy as np
from jax import numpy as jnp

from resnet_jax.data import DATASETS
from resnet_jax.errors import ConfigError
from resnet_jax.models import Arch, ResNet, arch_from_dict
from resnet_jax.models.summary import variable_shapes
from resnet_jax.training.checkpoint import Checkpoints, damage
from resnet_jax.training.config import Config, from_dict
from resnet_jax.training.loop import make_model, make_preprocess
from resnet_jax.training.state import PyTree
from resnet_jax.training.step import predict

BATCH = 256  # images at a time, so that many of them need no more memory than a few


class Predictor:
    """A trained network: predictor(images) -> probabilities.

    arch, variables: the network's, params and batch_stats; step: of the checkpoint; class_names: what the columns of
    probabilities are; image_shape: of the data set's images.
    """

    def __init__(self, config: Config, arch: Arch, model: ResNet, variables: PyTree, step: int):
        spec, preprocess = DATASETS[config.data.dataset], make_preprocess(config)
        self.config, self.arch, self.model, self.variables, self.step = config, arch, model, variables, step
        self.class_names = spec.class_names
        self.image_shape = spec.image_shape

        def probabilities(variables: PyTree, images: jax.Array) -> jax.Array:
            return jax.nn.softmax(predict(model, variables, preprocess.evaluate(images)))

        self._probabilities = jax.jit(probabilities)

    def probabilities(self, images: jax.Array) -> jax.Array:
        """What is behind the call, for jax to trace: images (N, H, W, C), in 0 to 255."""
        return self._probabilities(self.variables, images)

    def __call__(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """(N, H, W, C), or (N, H, W) for one channel -> (N, classes) float32, rows summing to 1.

        uint8 images hold 0 to 255, floating ones 0 to 1; any size is resized to that of training. ConfigError for
        anything else.
        """
        images = as_images(images, self.image_shape[-1])
        parts = [np.zeros((0, len(self.class_names)), np.float32)]
        for i in range(0, len(images), BATCH):
            part = images[i : i + BATCH]
            # whole batches only, so that one program serves any number of images
            padded = np.pad(part, ((0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)))
            parts.append(np.asarray(self._probabilities(self.variables, padded))[: len(part)])
        return np.concatenate(parts)


def as_images(images: np.ndarray | jax.Array, channels: int) -> np.ndarray:
    """Images as (N, H, W, C), in 0 to 255."""
    images = np.asarray(images)
    if images.ndim == 3 and channels == 1 and images.shape[-1] != 1:  # (H, W, 1) is one image, not N of them
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] != channels:
        raise ConfigError(f"images of shape {images.shape}: this network takes (N, H, W, {channels})")
    if jnp.issubdtype(images.dtype, jnp.floating):
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise ConfigError("floating images must lie in [0, 1]; divide by 255, or pass uint8")
        return images.astype(np.float32) * 255
    if images.dtype != np.uint8:
        raise ConfigError(f"images of dtype {images.dtype}: use uint8 (0 to 255) or floating (0 to 1)")
    return images


def load(run_dir: str | Path) -> Predictor:
    """The predictor of a run's best checkpoint, by test accuracy; CheckpointError where there is none."""
    with Checkpoints(Path(run_dir), read_only=True) as checkpoints:
        step = checkpoints.existing(checkpoints.best())
        meta = checkpoints.restore_meta(step)
        with damage(checkpoints.folder / str(step)):
            config = from_dict(meta["config"])
            arch = arch_from_dict(meta["arch"])
            model = make_model(config, arch, meta["dtype"])
            channels = DATASETS[config.data.dataset].image_shape[-1]
        like = variable_shapes(model, channels)
        variables = jax.device_put(checkpoints.restore_variables(step, like))
    return Predictor(config, arch, model, variables, step)
