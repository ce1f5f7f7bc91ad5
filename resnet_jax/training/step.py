"""The train step and the evaluation step, written for one device's share of the batch.

train_step takes a batch; it works under jit, pmap and jax.shard_map. make_train_steps builds the Trainer's own calls,
which take the batch from a data set that lives on the devices.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jax import numpy as jnp

from resnet_jax.data.augment import Preprocess, Source
from resnet_jax.errors import ConfigError
from resnet_jax.training.losses import Loss, each_loss, hits, losses_of
from resnet_jax.training.parallel import Device, Group, group_of, on_devices
from resnet_jax.training.state import STATISTICS, TrainState, is_frozen, merged, trained, variables_of


class Dataset(struct.PyTreeNode):
    """pixels: (N, H * W * C) uint8, or float32 in [0, 1]; labels: (N,) int32; image_shape: (H, W, C).

    num_classes: needed where labels become distributions. Every device holds all of it. An image is one row of numbers:
    the compiler for TPUs copies a data set of four axes into another layout in every step (benchmarks/ahead_of_time.py
    counts the bytes).
    """

    pixels: Any
    labels: Any
    image_shape: tuple[int, ...] = struct.field(pytree_node=False)
    num_classes: int = struct.field(pytree_node=False, default=0)

    @classmethod
    def of(cls, images: Any, labels: Any, num_classes: int = 0) -> "Dataset":
        """images: (N, H, W, C); labels: (N,)."""
        shape = tuple(images.shape[1:])
        return cls(images.reshape(len(images), math.prod(shape)), labels, shape, num_classes)

    def images(self, rows: jax.Array) -> jax.Array:
        """rows (B,) -> (B, H, W, C)."""
        return self.pixels[rows].reshape(*rows.shape, *self.image_shape)

    def lookup(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """rows (B,) -> images (B, H, W, C) and labels (B,)."""
        return self.images(rows), self.labels[rows]


class Metrics(struct.PyTreeNode):
    """Sums over images and devices: loss () float32; correct and count () int32."""

    loss: Any
    correct: Any
    count: Any

    @property
    def mean_loss(self) -> Any:
        """The mean loss of an image."""
        return self.loss / self.count

    @property
    def accuracy(self) -> Any:
        """The share of images whose largest logit is the label's."""
        return self.correct / self.count


def train_step(
    state: TrainState, batch: Any, *, axis_name: str | tuple[str, ...] | None = None
) -> tuple[TrainState, Metrics]:
    """One update of the state from a batch of images and labels, for a training loop of your own.

    batch: (images, labels), or a mapping with the keys image and label. images: (B, H, W, C), floating as the model
    takes them, or uint8, which are scaled to [0, 1]. labels: (B,) integers, or whatever state.loss takes.
    Under pmap and jax.shard_map each device passes its share of the batch, and the state must be the same on all:
    gradients and metrics are summed over the devices, and so the new state is the same again. The axis is found
    without axis_name, except under the pmap of jax before 0.8 if its axis is not called "batch".

        step = jax.jit(resnet_jax.train_step, donate_argnums=0)
        state, metrics = step(state, (images, labels))
    """
    images, labels = images_and_labels(batch)
    return update(state, images, labels, group_of((images, labels), axis_name))


def images_and_labels(batch: Any) -> tuple[jax.Array, jax.Array]:
    """The images, floating, and the labels of a batch. ConfigError if it holds neither a pair nor these names."""
    if isinstance(batch, Mapping):
        names = [next((name for name in (key, key + "s") if name in batch), None) for key in ("image", "label")]
        pair = [batch[name] for name in names if name is not None]
    else:
        pair = list(batch) if isinstance(batch, Sequence) else []
    if len(pair) != 2:
        raise ConfigError("batch: give (images, labels), or a mapping with the keys image and label")
    images, labels = jnp.asarray(pair[0]), jnp.asarray(pair[1])
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    return images, labels


def update(state: TrainState, images: jax.Array, labels: jax.Array, group: Group) -> tuple[TrainState, Metrics]:
    """One update from this device's share of the batch. images: (B, H, W, C) as the model takes them."""
    params = trained(state.params, state.frozen)
    grads, changed, metrics = mean_gradient(state, params, images, labels, group)
    if state.sam:  # the running statistics of the first pass are not used
        grads, changed, _ = mean_gradient(state, ascended(params, grads, state.sam), images, labels, group)
    updates, opt_state = state.optimizer.update(grads, state.opt_state, params)
    state = state.replace(
        step=state.step + 1,
        params=merged(state.params, optax.apply_updates(params, updates)),
        batch_stats=changed.pop(STATISTICS, state.batch_stats),
        opt_state=opt_state,
        others={**state.others, **changed},
    )
    return state.averaged(), metrics


def mean_gradient(
    state: TrainState, params: Any, images: jax.Array, labels: jax.Array, group: Group
) -> tuple[Any, dict[str, Any], Metrics]:
    """The gradient of the batch's mean loss at these params, the collections that change, and the metrics."""
    batch = images.shape[0] * group.size
    # dropout and stochastic depth draw other numbers on each device, for its own images
    key = jax.random.fold_in(jax.random.fold_in(step_key(state), batch), group.index)

    def gradient(params, images, labels, key, collections):
        def loss(params):
            variables = variables_of(merged(state.params, params), state.batch_stats, state.others) | collections
            logits, changed = apply_training(state, variables, images, {"dropout": key})
            losses = losses_of(state.loss, logits, labels)
            correct = hits(logits, labels).sum(dtype=jnp.float32)  # exact up to 2^24; one type for all that is summed
            return losses.sum() / batch, (changed, losses.sum(), correct)

        return jax.grad(loss, has_aux=True)(params)

    params = group.vary(params)
    if state.accumulate == 1:
        grads, (changed, loss_sum, correct) = gradient(params, images, labels, key, {})
    else:
        parts = split_batch(state.accumulate, images, labels, key)
        grads, (changed, loss_sum, correct) = accumulated(partial(gradient, params), parts)
    # Each device has the gradient of its share of the mean loss; the sum over devices is the gradient of the mean. The
    # sums cross together, and the statistics too if they are those of each device's own images.
    own = changed if getattr(state.model, "axis_name", None) is None else {}
    grads, loss_sum, correct, totals = group.sum((grads, loss_sum, correct, jax.tree.map(if_floating, own)))
    metrics = Metrics(loss=loss_sum, correct=correct.astype(jnp.int32), count=jnp.int32(batch))
    changed = {**changed, **jax.tree.map(partial(mean_over_devices, group), own, totals)}
    return grads, changed, metrics


def split_batch(parts: int, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
    """Images, labels and random keys with a new first axis of so many parts. ConfigError for parts of other sizes.

    A part has every parts-th image, so that it has the same images on any number of devices.
    """
    check_parts(parts, images.shape[0])
    images, labels = (x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in (images, labels))
    return images, labels, jax.random.split(key, parts)


def check_parts(parts: int, images: int) -> None:
    """Raise ConfigError if a device's images of a batch cannot be split into equal parts."""
    if images % parts:
        fitting = max(n for n in range(1, parts) if images % n == 0)
        raise ConfigError(
            f"accumulate (--accumulate) {parts}: a device has {images} images of a batch, which cannot be split into "
            f"{parts} equal parts; use {fitting}, or another batch size"
        )


def accumulated(gradient: Callable[..., Any], parts: tuple[jax.Array, ...]) -> Any:
    """The sums of gradients, losses and hits over the parts of a batch, computed one after the other.

    Each part normalises with its own statistics and updates the running ones, as a step of its own would.
    """

    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        total, part = lax.optimization_barrier((total, part))  # the next part starts after this one: less memory
        grads, (collections, *sums) = total
        more, (collections, *more_sums) = gradient(*part, collections)
        grads, sums = jax.tree.map(jnp.add, (grads, sums), (more, more_sums))
        return (grads, (collections, *sums)), None

    first = gradient(*(x[0] for x in parts), {})
    rest = tuple(x[1:] for x in parts)
    # XLA:CPU runs a convolution inside a loop many times slower. Elsewhere a loop compiles sooner.
    return lax.scan(add, first, rest, unroll=jax.default_backend() == "cpu")[0]


def ascended(params: Any, grads: Any, rho: float) -> Any:
    """The params moved by rho along the gradient: where sharpness-aware minimisation takes its gradient."""
    scale = rho / jnp.maximum(optax.tree.norm(grads), 1e-12)
    return jax.tree.map(lambda param, grad: param + (scale * grad).astype(param.dtype), params, grads)


def step_key(state: TrainState) -> jax.Array:
    """The random key of the step that the state is about to make."""
    return jax.random.fold_in(jax.random.key(state.seed), state.step)


def image_keys(seed: Any, step: Any, places: jax.Array) -> jax.Array:
    """The random keys (N,) that augment the images at `places` (N,) of the batch of a step, counted from 0."""
    first = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda place: jax.random.fold_in(first, place))(places)


def training_batch(
    preprocess: Preprocess, data: Dataset, seed: Any, step: Any, epoch: Any, rows: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The images and labels that a step takes from rows (B,) of the data, which have these places in its batch.

    A function of these arguments: each place in the global batch has a key, and so augmentation depends neither on the
    number of devices nor on where a run was resumed.
    """
    source = Source(data.lookup, len(data.labels), data.num_classes, seed, epoch)
    return preprocess.batch(image_keys(seed, step, places), rows, source)


def if_floating(x: jax.Array) -> jax.Array | None:
    """x, or None for an array of integers, such as a counter."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else None


def mean_over_devices(group: Group, x: jax.Array, total: jax.Array | None) -> jax.Array:
    """The mean of x over devices, from its sum; the largest x if the sum is None."""
    if total is None:
        return group.reduce(lax.pmax, x)
    return total / group.size if group.differs(x) else x


def apply_training(state: TrainState, variables: Any, images: jax.Array, rngs: Any) -> tuple[jax.Array, dict[str, Any]]:
    """The logits in training mode, and the collections that the model changes. Frozen parts run as in evaluation."""
    mutable = [STATISTICS, *state.others]
    with nn.intercept_methods(frozen_in_evaluation_mode(state.frozen)):
        logits, changed = state.model.apply(variables, images, train=True, mutable=mutable, rngs=rngs)
    return logits, dict(changed)


def frozen_in_evaluation_mode(frozen: Sequence[str]) -> Callable:
    """An interceptor that calls the frozen parts of a model with train=False."""

    def intercept(call, args, kwargs, context):
        if context.method_name != "__call__" or not is_frozen("/".join(context.module.path), frozen):
            return call(*args, **kwargs)
        if getattr(context.module, "use_running_average", None) is False:  # a norm that was built for training
            object.__setattr__(context.module, "use_running_average", True)
        bound = inspect.signature(context.orig_method).bind(*args, **kwargs)
        if "train" in bound.signature.parameters:
            bound.arguments["train"] = False
        return call(*bound.args, **bound.kwargs)

    return intercept


def predict(model: nn.Module, variables: Any, images: jax.Array) -> Any:
    """The logits of images in evaluation mode. (N, H, W, C) -> (N, K) float32."""
    return model.apply(variables, images, train=False)


def predict_with_mirror(model: nn.Module, variables: Any, preprocess: Preprocess, images: jax.Array) -> jax.Array:
    """The logarithm of the probabilities, averaged over each image and its mirror image. -> (N, K) float32.

    images: (N, H, W, C) as stored. Both are prepared in the same way, so that `evaluate` finds the same numbers.
    """
    pair = (predict(model, variables, preprocess.evaluate(x)) for x in (images, images[:, :, ::-1]))
    return jnp.logaddexp(*map(jax.nn.log_softmax, pair)) - math.log(2)


def eval_step(
    model: nn.Module,
    loss: Loss,
    preprocess: Preprocess,
    mirror: bool,
    variables: Any,
    data: Dataset,
    rows: jax.Array,
    group: Group,
) -> Metrics:
    """The metrics of this device's rows (B,); a row of -1 is padding and is not counted. mirror: average over flips."""
    images, labels = data.images(rows), data.labels[rows]
    if mirror:
        logits = predict_with_mirror(model, variables, preprocess, images)
    else:
        logits = predict(model, variables, preprocess.evaluate(images))
    real = rows >= 0
    losses = each_loss(loss, logits, labels)  # a mean would count the padding
    correct = (hits(logits, labels) & real).sum()
    sums = Metrics(loss=jnp.where(real, losses, 0).sum(), correct=correct, count=real.sum())
    return lax.psum(sums, group.axes)


def make_train_steps(
    preprocess: Preprocess, devices: Sequence[Device]
) -> Callable[[int], Callable[..., tuple[TrainState, Metrics]]]:
    """num_steps -> a call of the devices that makes that many updates and sums their metrics.

    The call takes (state, data, rows, first). It donates state. rows: (devices, steps of the epoch, B / devices)
    indices into data; first: () int32, the first step to make.
    """

    def step(state: TrainState, data: Dataset, rows: jax.Array, epoch: Any) -> tuple[TrainState, Metrics]:
        group = group_of(rows)
        places = group.index * rows.shape[0] + jnp.arange(rows.shape[0])
        images, labels = training_batch(preprocess, data, state.seed, state.step, epoch, rows, places)
        return update(state, images, labels, group)

    @cache
    def train_steps(num_steps: int):
        def run(state, data, rows, first):
            epoch = state.step // len(rows)
            if num_steps == 1:  # XLA:CPU runs a convolution inside a scan many times slower
                return step(state, data, rows[first], epoch)
            mine = lax.dynamic_slice_in_dim(rows, first, num_steps)
            state, metrics = lax.scan(lambda state, rows: step(state, data, rows, epoch), state, mine)
            return state, jax.tree.map(lambda sums: sums.sum(0), metrics)

        return on_devices(run, devices, in_axes=(None, None, 0, None), donate=(0,))

    return train_steps


def make_eval_step(
    model: nn.Module, loss: Loss, preprocess: Preprocess, devices: Sequence[Device], mirror: bool = False
) -> Callable[..., Metrics]:
    """A call of the devices: (variables, data, rows (devices, B / devices)) -> metrics."""

    def run(variables, data, rows):
        return eval_step(model, loss, preprocess, mirror, variables, data, rows, group_of(rows))

    return on_devices(run, devices, in_axes=(None, None, 0))


def epoch_rows(seed: int, epoch: int, num_images: int, batch_size: int, num_devices: int) -> np.ndarray:
    """The order of an epoch, a pure function of (seed, epoch): (devices, steps, B / devices) int32.

    The num_images % batch_size images at the end of the permutation are left out of this epoch.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_images).astype(np.int32)
    steps = num_images // batch_size
    return order[: steps * batch_size].reshape(steps, num_devices, -1).swapaxes(0, 1)


def eval_rows(num_images: int, batch_size: int, num_devices: int) -> np.ndarray:
    """Every image once, padded with -1: (steps, devices, ceil(batch_size / devices)) int32."""
    share = -(-batch_size // num_devices)
    rows = np.arange(num_images, dtype=np.int32)
    padded = np.pad(rows, (0, -num_images % (share * num_devices)), constant_values=-1)
    return padded.reshape(-1, num_devices, share)
