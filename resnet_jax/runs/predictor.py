"""From a trained run to predictions."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax.data.augment import Preprocess
from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.models import Arch, arch_from_dict
from resnet_jax.paths import user_path
from resnet_jax.runs.build import DataInfo, info_of_meta, make_model, make_preprocess
from resnet_jax.runs.checkpoint import Checkpoints, damage
from resnet_jax.runs.config import Config, from_dict
from resnet_jax.training.parallel import PyTree
from resnet_jax.training.state import initialise
from resnet_jax.training.step import predict

BATCH = 256  # images at a time, which bounds the memory


@partial(jax.jit, static_argnums=(0, 1))
def _probabilities(model: nn.Module, preprocess: Preprocess, variables: PyTree, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(predict(model, variables, preprocess.evaluate(images)))


class Predictor:
    """A trained network: predictor(images) -> probabilities. It can be pickled.

    model, variables: the network; class_names: the columns of the probabilities; image_shape: (H, W, C) of the training
    images; preprocess: what happens to images before the network; step: of the checkpoint. arch, config: those of a
    run of train.py, None for one of a Trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: PyTree,
        info: DataInfo,
        preprocess: Preprocess,
        step: int = 0,
        arch: Arch | None = None,
        config: Config | None = None,
    ):
        self.model, self.variables, self.preprocess, self.step = model, variables, preprocess, step
        self.arch: Any = arch
        self.config: Any = config
        self.class_names = info.class_names
        self.image_shape = info.image_shape

    def probabilities(self, images: Any) -> jax.Array:
        """The function behind the call, for jax to trace: images (N, H, W, C), uint8, or floating in [0, 1]."""
        return _probabilities(self.model, self.preprocess, self.variables, images)

    def __call__(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """(N, H, W, C), or (N, H, W) for one channel -> (N, classes) float32; each row sums to 1.

        Images are uint8, or floating in [0, 1], of any size: they are resized to that of training. ConfigError for
        anything else.
        """
        images = as_images(images, self.image_shape[-1])
        parts = [np.zeros((0, len(self.class_names)), np.float32)]
        for i in range(0, len(images), BATCH):
            part = images[i : i + BATCH]
            # always a whole batch, so that one program serves any number of images
            padded = np.pad(part, ((0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)))
            parts.append(np.asarray(self.probabilities(padded))[: len(part)])
        return np.concatenate(parts)


def as_images(images: np.ndarray | jax.Array, channels: int) -> np.ndarray:
    """Images as (N, H, W, C), uint8, or float32 in [0, 1]."""
    images = np.asarray(images)
    if images.ndim == 3 and channels == 1 and images.shape[-1] != 1:  # (H, W, 1) is one image, not N of them
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] != channels:
        raise ConfigError(f"images of shape {images.shape}: this network takes (N, H, W, {channels})")
    if jnp.issubdtype(images.dtype, jnp.floating):
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise ConfigError("floating images must lie in [0, 1]; divide by 255, or pass uint8")
        return images.astype(np.float32)
    if images.dtype != np.uint8:
        raise ConfigError(f"images of dtype {images.dtype}: use uint8 (0 to 255) or floating (0 to 1)")
    return images


def load(run_dir: str | Path, model: nn.Module | None = None) -> Predictor:
    """The predictor of a run's best checkpoint: by validation accuracy, or the latest without a validation part.

    model: needed for a run of a Trainer, whose folder does not say how to build the network. Raises CheckpointError
    for a folder without a checkpoint.
    """
    with Checkpoints(user_path(run_dir, "run_dir"), read_only=True) as checkpoints:
        step = checkpoints.existing(checkpoints.best())
        meta = checkpoints.restore_meta(step)
        own = "trainer" in meta
        if own and model is None:
            raise CheckpointError(f"{run_dir}: a Trainer made this run; pass its model too: load(run_dir, model)")
        with damage(checkpoints.folder / str(step)):
            parts = _of_trainer(meta, model) if own else _of_config(meta)
            network, info, preprocess, arch, config = parts
        shape = (*(preprocess.image_size or info.image_shape[:2]), info.image_shape[-1])
        like = jax.eval_shape(lambda: initialise(network, shape, 0))
        variables = checkpoints.restore_variables(step, like)
    return Predictor(network, jax.device_put(variables), info, preprocess, step, arch, config)


def _of_config(meta: dict[str, Any]) -> tuple[Any, ...]:
    config, arch = from_dict(meta["config"]), arch_from_dict(meta["arch"])
    info = info_of_meta(meta)
    return make_model(config, arch, info, meta["dtype"]), info, make_preprocess(config.data, info), arch, config


def _of_trainer(meta: dict[str, Any], model: nn.Module | None) -> tuple[Any, ...]:
    info, size = DataInfo.from_dict(meta["data"]), meta["trainer"]["image_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    return model, info, Preprocess(size if any(size) else info.image_shape[:2], info.mean_std), None, None
