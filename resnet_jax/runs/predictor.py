"""From a trained run to predictions."""

import operator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.core import Tracer

from resnet_jax.data.augment import Preprocess
from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.models import Arch, ResNet, arch_from_dict
from resnet_jax.models.folding import Pairs, fold, folded_into, unfolded_part
from resnet_jax.ops.precision import without_x64
from resnet_jax.paths import check_readable, user_path
from resnet_jax.runs.build import DataInfo, info_of_meta, make_model, make_preprocess
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.config import Config, from_dict
from resnet_jax.runs.converted import is_converted, parts_of
from resnet_jax.runs.folders import readable
from resnet_jax.runs.hardware import prediction_dtype
from resnet_jax.runs.inputs import as_stacks, batches
from resnet_jax.runs.stored import understood
from resnet_jax.training.parallel import PyTree, local_devices
from resnet_jax.training.state import initialise
from resnet_jax.training.step import predict

BATCHES = (1, 8, 32, 256)  # images at a time: a program is compiled for each that is used


def _logits(model: nn.Module, preprocess: Preprocess, variables: PyTree, images: jax.Array) -> jax.Array:
    return predict(model, variables, preprocess.evaluate(images))


@partial(jax.jit, static_argnums=(0, 1))
def _probabilities(
    model: nn.Module, preprocess: Preprocess, variables: PyTree, pairs: Pairs, images: jax.Array
) -> jax.Array:
    with folded_into(pairs):
        return jax.nn.softmax(_logits(model, preprocess, variables, images))


class Predictor:
    """A trained network: predictor(images) -> probabilities. It can be pickled.

    model, variables: the network; class_names: the columns of the probabilities; image_shape: (H, W, C) of the training
    images; info: of the training data; preprocess: what happens to images before the network; step: of the checkpoint.
    arch, config: those of a run of train.py, None for one of a Trainer. To change the weights, assign new `variables`:
    numpy arrays that are changed in place after the first call have no effect.
    """

    _folded: tuple[list[Any], PyTree, Pairs] | None = None  # the leaves of the variables, and what _fold returns

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
        self.info = info
        self.class_names = info.class_names
        self.image_shape = info.image_shape

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_folded": None}

    def probabilities(self, images: Any) -> jax.Array:
        """The function behind the call, for jax to trace: images (N, H, W, C), uint8, or floating in [0, 1].

        Batch norms are folded into the convolutions before them (see models/folding.py), at the first call.
        """
        variables, pairs = self._fold(images)
        return _probabilities(_for_inference(self.model), self.preprocess, variables, pairs, images)

    def unfolded(self, images: Any) -> jax.Array:
        """`probabilities`, but each layer computes what it computed in training: its figures to the last bit."""
        return _probabilities(self.model, self.preprocess, self.variables, {}, images)

    def _fold(self, images: Any) -> tuple[PyTree, Pairs]:
        """The variables that the folded network reads, and the folded kernels and biases.

        There are none of the latter while jax traces the variables.
        """
        leaves = jax.tree.leaves(self.variables)
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return self.variables, {}
        known = self._folded[0] if self._folded else []
        if self._folded is None or len(leaves) != len(known) or not all(map(operator.is_, leaves, known)):
            run = partial(_logits, _for_inference(self.model), self.preprocess)
            pairs = fold(run, self.variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
            others = unfolded_part(self.variables, pairs) if pairs else self.variables
            with jax.ensure_compile_time_eval():  # a caller may trace this
                self._folded = leaves, others, jax.device_put(pairs)
        return self._folded[1:]

    @without_x64()
    def __call__(self, images: Any) -> np.ndarray:
        """Pictures -> (N, classes) float32; each row sums to 1.

        images: an array (N, H, W, C), or (N, H, W) for one channel; one picture (H, W), (H, W, C) or of Pillow, which
        gives one row; or a list of pictures, which may differ in size. A last axis of 1, 3 or 4 is the channels.
        Values: integers from 0 to 255, or floating in [0, 1]. Any size is resized to the input of the network.
        Colour becomes gray, gray is repeated for RGB, and transparent pixels are blended with white, as from_folder
        does; a line says so. ConfigError for anything else, such as bool, or channels on the first axis.
        """
        stacks = as_stacks(images, self.image_shape)
        count = sum(map(len, stacks))
        size = max(size for size in BATCHES if size < 2 * max(count, 1))
        shape = (*(self.preprocess.image_size or self.image_shape[:2]), self.image_shape[-1])
        rows = [np.zeros((0, len(self.class_names)), np.float32)]
        for part in batches(stacks, shape, size):
            padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
            rows.append(np.asarray(self.probabilities(padded))[: len(part)])
        return np.concatenate(rows)


def _for_inference(model: nn.Module) -> nn.Module:
    """The model without remat, which only saves memory in training and hides layers from `fold`."""
    return model.clone(remat=False, parent=None) if isinstance(model, ResNet) and model.remat else model


@without_x64()
def load(run_dir: str | Path, model: nn.Module | None = None) -> Predictor:
    """The predictor of a run's best checkpoint: by validation accuracy, or the latest without a validation part.

    Also of a folder that `convert` made. model: needed for a run of a Trainer, whose folder does not say how to build
    the network. A damaged checkpoint is reported, and the next best one is used. Raises CheckpointError for a folder
    without a good checkpoint, or one that cannot be read, InteropError for damaged converted weights.
    """
    local_devices()  # raises for devices that JAX cannot start
    path = user_path(run_dir, "run_dir")
    check_readable(path, "run_dir", CheckpointError)
    with readable(path):
        return _load(path, model)


def _load(path: Path, model: nn.Module | None) -> Predictor:
    if path.is_file():
        raise CheckpointError(f"{path} is a file; python -m resnet_jax convert makes a folder of it that load opens")
    if is_converted(path):
        if model is not None:
            raise ConfigError(f"{path}: convert made this folder, which names its network; call load without a model")
        network, variables, info, preprocess, arch = parts_of(path)
        return Predictor(network, jax.device_put(variables), info, preprocess, arch=arch)
    with Checkpoints(path, read_only=True) as checkpoints:
        return checkpoints.first_good(checkpoints.ranked(), lambda step: _read(checkpoints, step, model))


def _read(checkpoints: Checkpoints, step: int, model: nn.Module | None) -> Predictor:
    """The predictor of one checkpoint."""
    meta = checkpoints.restore_meta(step)
    own = "trainer" in meta
    folder = checkpoints.run_dir
    if own and model is None:
        raise CheckpointError(f"{folder}: a Trainer made this run; pass its model too: load(folder, model)")
    if model is not None and not own:
        raise CheckpointError(f"{folder}: train.py made this run and keeps its network; call load without a model")
    with understood(checkpoints.path(step), meta):
        network, info, preprocess, arch, config = _of_trainer(meta, model) if own else _of_config(meta)
    shape = (*(preprocess.image_size or info.image_shape[:2]), info.image_shape[-1])
    like = jax.eval_shape(lambda: initialise(network, shape, 0))
    variables = checkpoints.restore_variables(step, like)
    return Predictor(network, jax.device_put(variables), info, preprocess, step, arch, config)


def _of_config(meta: dict[str, Any]) -> tuple[Any, ...]:
    config, arch = from_dict(meta["config"]), arch_from_dict(meta["arch"])
    info, dtype = info_of_meta(meta), prediction_dtype(meta["dtype"])
    return make_model(config, arch, info, dtype), info, make_preprocess(config.data, info), arch, config


def _of_trainer(meta: dict[str, Any], model: nn.Module | None) -> tuple[Any, ...]:
    info, size = DataInfo.from_dict(meta["data"]), meta["trainer"]["image_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    return model, info, Preprocess(size if any(size) else info.image_shape[:2], info.mean_std), None, None
