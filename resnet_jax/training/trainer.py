"""Trainer: a network, data and what you choose about training, in one call of fit."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax.arguments import shown, whole
from resnet_jax.data import Arrays, ImageDataset
from resnet_jax.data.augment import Augmentation, MeanStd, Preprocess, check_augment
from resnet_jax.errors import ConfigError, listed
from resnet_jax.ops.precision import without_x64
from resnet_jax.training.averaging import Averaging, check_lookahead
from resnet_jax.training.display import EpochLines, ProgressBar
from resnet_jax.training.events import check_callbacks
from resnet_jax.training.loop import Loop, evaluated, run
from resnet_jax.training.losses import Loss, check_distributions, cross_entropy
from resnet_jax.training.memory import check_images, check_size
from resnet_jax.training.metrics import Row, Sums
from resnet_jax.training.optim import Optimizer, check_optimizer, sgd
from resnet_jax.training.parallel import AXIS, Device, pick_devices, pick_steps_per_call, replicate
from resnet_jax.training.program import Program, Size, Sizes
from resnet_jax.training.state import TrainState, Variables, initialise
from resnet_jax.training.step import Dataset, check_parts

MOST_SIZES = 8  # of the training images in a fit
CHAPTERS_SGD = sgd(0.01)  # the optimizer of the residual-networks chapter


@dataclasses.dataclass(frozen=True)
class Result:
    """What a fit returns.

    variables: the collections of the final network, on the devices; the averaged ones with Trainer(averaging=...).
    history: a row for each epoch. stopped: why a callback ended the fit early, or None. state: the final TrainState,
    with which to go on.
    """

    variables: Mapping[str, Any]
    history: list[Row]
    state: TrainState
    stopped: str | None = None

    @property
    def test_accuracy(self) -> float:
        """The test accuracy of the last epoch, not of the best; ConfigError for data without a test part."""
        if not self.history or "test_accuracy" not in self.history[-1]:
            raise ConfigError("test_accuracy: the data has no test part, or no epoch was trained")
        return self.history[-1]["test_accuracy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """How to train; `fit` takes what to train, and on what.

    max_epochs, batch_size: passes over the training images, and images of a step over all devices. An epoch leaves
    out the last images that do not fill a batch; which images these are changes with the epoch.
    optimizer: any optax one, or a mapping from paths of parts to optimizers (see by_path). loss: a function of
    (logits (N, K), labels (N,)) that returns (N,), or the mean (); with mixup or cutmix the labels of training images
    are distributions (N, K). augment: functions of (key, image), in order (see resnet_jax.augment). callbacks: objects
    with some of on_fit_start, on_step_end, on_epoch_end, on_fit_end (see resnet_jax.training.events).
    image_size: what images are resized to, bilinearly; 0 keeps their size. sizes: (epoch, size) in order, epochs from
    1: training images have this size from that epoch on; other images have image_size. normalize: (mean, deviation) of
    images in [0, 1], each a number or one a channel, such as (data.mean, data.std). freeze: paths of parts that keep
    their weights. devices: how many, 0 for all, or a list of them. sync_batch_norm: batch statistics over all devices,
    for models with a field axis_name. steps_per_call: train steps in one call of the devices; 0 is 1 on a CPU, else 32.
    averaging: resnet_jax.Ema or resnet_jax.Lookahead, whose average of the weights is evaluated and returned. sam: the
    radius of sharpness-aware minimisation, 0 for none. accumulate: parts of a batch that are computed one after the
    other, to save memory.
    learning_rate: the schedule, if rows should have it. progress: print a bar, and a line for each epoch.
    """

    max_epochs: int = 10
    batch_size: int = 128
    optimizer: Optimizer | Mapping[str, Optimizer] = CHAPTERS_SGD
    loss: Loss = cross_entropy
    augment: Sequence[Augmentation] = ()
    callbacks: Sequence[Any] = ()
    seed: int = 0
    image_size: int | tuple[int, int] = 0
    sizes: Sequence[tuple[int, int | tuple[int, int]]] = ()
    normalize: MeanStd | None = None
    freeze: Sequence[str] = ()
    devices: int | Sequence[Device] = 0
    sync_batch_norm: bool = True
    steps_per_call: int = 0
    averaging: Averaging | None = None
    sam: float = 0.0
    accumulate: int = 1
    learning_rate: Callable[[int], Any] | None = None
    progress: bool = True

    @without_x64()
    def fit(self, model: nn.Module, data: ImageDataset, *, variables: Variables | None = None) -> Result:
        """Train the model on data.train, and evaluate it after each epoch on data.validation and data.test.

        model: any linen module with __call__(x, train), whose output is (N, data.num_classes). variables: weights to
        start from, in whole or in part; None starts from the model's initialisation. The result is a pure function of
        the arguments, seed and machine. Raises ConfigError, before anything is compiled, for arguments that do not
        fit together; TrainingError if the loss overflows; CallbackError if a callback raises.
        """
        loop = self.make_loop(model, data, variables)
        run(loop, [*self.callbacks, *self.displays()])
        return result_of(loop)

    @without_x64()
    def evaluate(self, model: nn.Module, variables: Variables, part: Arrays) -> Sums:
        """The metrics of every image of a part, each counted once: .mean_loss, .accuracy, .correct, .count.

        Each call compiles the evaluation again.
        """
        if not isinstance(part, tuple) or len(part) != 2:
            raise ConfigError(f"part {type(part).__name__}: give a part of the data, such as data.validation")
        devices = pick_devices(self.devices)
        images, labels = part
        program = self.make_program(model, images.shape[1:], devices)
        data = replicate(Dataset.of(images, labels), devices)
        return evaluated(program, replicate(dict(variables), devices), data, self.batch_size, devices)

    def make_loop(self, model: nn.Module, data: ImageDataset, variables: Variables | None = None) -> Loop:
        """The fit before its first step, with everything checked that can be checked without compiling."""
        check_callbacks(self.callbacks)
        check_data(data)
        epochs, batch_size = (whole(name, getattr(self, name), 1) for name in ("max_epochs", "batch_size"))
        devices = pick_devices(self.devices)
        check_batch(batch_size, len(data.train.labels), len(devices), whole("accumulate", self.accumulate, 1))
        check_lookahead(self.averaging, epochs * (len(data.train.labels) // batch_size))
        check_augment(self.augment, data.image_shape[:2])
        if self.sync_batch_norm and len(devices) > 1 and getattr(model, "axis_name", AXIS) is None:
            model = model.clone(axis_name=AXIS)
        program = self.make_program(model, data.image_shape, devices, variables)
        check_model(model, program.input_shape, data.num_classes)
        sizes = checked_sizes(self.sizes)
        check_sizes_of(model, program.input_shape, sizes)
        if program.preprocess.mixes:
            check_distributions(self.loss, data.num_classes)
        state = jax.eval_shape(program.initial_state)  # raises for an optimizer or a frozen part that does not fit
        check_size(state.params, devices[0])
        check_images(data, devices[0])
        return Loop(
            program=program,
            data=data,
            devices=devices,
            epochs=epochs,
            batch_size=batch_size,
            steps_per_call=pick_steps_per_call(self.steps_per_call, devices[0]),
            learning_rate=self.learning_rate,
            sizes=sizes,
        )

    def make_program(
        self, model: nn.Module, image_shape: Iterable[int], devices: list[Device], variables: Variables | None = None
    ) -> Program:
        """The compiled parts of a fit, for images of (H, W, C)."""
        preprocess = self.preprocess
        height, width, channels = image_shape
        return Program(
            model=model,
            optimizer=check_optimizer(self.optimizer),
            loss=self.loss,
            preprocess=preprocess,
            seed=self.seed,
            devices=devices,
            input_shape=(*(preprocess.image_size or (height, width)), channels),
            freeze=tuple(self.freeze),
            variables=variables,
            averaging=self.averaging,
            sam=self.sam,
            accumulate=self.accumulate,
        )

    @property
    def preprocess(self) -> Preprocess:
        """What happens to images before the model."""
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        return Preprocess(size if any(size) else None, self.normalize, tuple(self.augment))

    def displays(self) -> list[Any]:
        """The callbacks of `progress`."""
        return [ProgressBar(), EpochLines()] if self.progress else []


def result_of(loop: Loop) -> Result:
    """The result of a fit that has ended."""
    state = loop.state
    return Result(state.variables, loop.history, state, loop.stopping)


def check_data(data: Any) -> None:
    """Raise ConfigError for an object that is no ImageDataset."""
    if not isinstance(data, ImageDataset):
        raise ConfigError(
            f"data: {type(data).__name__} is no ImageDataset; resnet_jax.data.from_arrays(images, labels) makes one"
        )


def check_batch(batch: int, images: int, num_devices: int, parts: int = 1) -> None:
    """Raise ConfigError for a batch larger than the training set, or one without equal shares and parts of shares."""
    if batch > images:
        raise ConfigError(
            f"batch_size (--batch-size) {batch} is more than the {images} training images; use at most {images}"
        )
    if batch % num_devices:
        below, above = batch // num_devices * num_devices, -(-batch // num_devices) * num_devices
        nearest = f"{below} or {above}" if below else str(above)
        fitting = max(n for n in range(1, num_devices) if batch % n == 0)
        raise ConfigError(
            f"batch_size (--batch-size) {batch} cannot be split over {num_devices} devices; "
            f"use {nearest}, or devices (--devices) {fitting}"
        )
    check_parts(parts, batch // num_devices)


def check_model(model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Raise ConfigError for an object that is no linen module, or whose output is not (N, num_classes)."""
    if not isinstance(model, nn.Module):
        hint = "; flax.nnx.bridge.to_linen wraps an NNX module" if "nnx" in str(type(model).__mro__) else ""
        raise ConfigError(f"model: {type(model).__name__} is no flax.linen module{hint}")
    images = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    try:
        output, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), images)
    except TypeError as error:
        if "train" not in str(error):
            raise
        raise ConfigError(
            f"model: {type(model).__name__}.__call__ must take (x, train); add the argument train: bool = False"
        ) from error
    if getattr(output, "shape", None) != (2, num_classes):
        raise ConfigError(
            f"model: its output has shape {describe_shape(output)} for 2 images; "
            f"it must be (N, {num_classes}), a logit for each class of the data"
        )
    if "params" not in variables:
        raise ConfigError(f"model: {type(model).__name__} has no parameters to train")


def checked_sizes(sizes: Any) -> Sizes:
    """The sizes as ((epoch, (height, width)), ...); ConfigError for invalid ones, or for too many."""
    try:
        pairs = [(epoch, (size, size) if isinstance(size, int) else tuple(size)) for epoch, size in sizes]
    except (TypeError, ValueError):
        raise ConfigError(f"sizes {shown(sizes)}: give pairs (epoch, size), such as [(1, 20), (4, 28)]") from None
    held = [
        (whole("sizes: an epoch", epoch, 1), (whole("sizes: a height", height, 1), whole("sizes: a width", width, 1)))
        for epoch, (height, width) in pairs
    ]
    epochs = [epoch for epoch, _ in held]
    if epochs != sorted(set(epochs)):
        raise ConfigError(
            f"sizes (--sizes): the epochs {listed(map(str, epochs))} are out of order; give each epoch once, and the "
            "earliest first"
        )
    if len({size for _, size in held}) > MOST_SIZES:
        raise ConfigError(f"sizes (--sizes): a program is compiled for each size; give at most {MOST_SIZES} sizes")
    return tuple(held)


def check_sizes_of(model: nn.Module, input_shape: tuple[int, ...], sizes: Sequence[tuple[int, Size]]) -> None:
    """Raise ConfigError if the parameters of the model have other shapes for images of one of these sizes."""
    if not sizes:
        return
    *_, channels = input_shape
    wanted = jax.eval_shape(lambda: initialise(model, input_shape, 0))
    for height, width in dict.fromkeys(size for _, size in sizes):
        shape = (height, width, channels)
        if jax.eval_shape(lambda shape=shape: initialise(model, shape, 0)) != wanted:
            raise ConfigError(
                f"sizes: {type(model).__name__} has other parameters for images of {height}x{width} pixels than for "
                f"{input_shape[0]}x{input_shape[1]}; use a model with a global pool, or leave sizes out"
            )


def describe_shape(output: Any) -> str:
    """The shape of an array, or the type of anything else."""
    try:
        return str(tuple(output.shape))
    except AttributeError:
        return f"{type(output).__name__} (no array)"
