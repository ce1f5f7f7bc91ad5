"""The train step and the evaluation step, over all devices. The only file that names pmap.

Written for one device's share; what crosses devices is named. State and data set have no device axis (they are the
same everywhere), rows have one.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import struct
from jax import lax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.data.augment import Preprocess
from resnet_jax.models import ResNet
from resnet_jax.training.state import Device, PyTree, TrainState, trained

AXIS = "batch"


class Dataset(NamedTuple):
    """images: (N, H, W, C) uint8; labels: (N,) int32. The whole of it lives on every device."""

    images: Any
    labels: Any


class Metrics(struct.PyTreeNode):
    """Sums over images and devices: loss () float32; correct and count () int32."""

    loss: Any
    correct: Any
    count: Any


def replicate(tree: PyTree, devices: Sequence[Device]) -> PyTree:
    """The tree on every device, in the form that a step puts it out, so that a step compiles once."""
    return jax.device_put(tree, NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec()))


def shard(x: np.ndarray, devices: Sequence[Device]) -> jax.Array:
    """x: (devices, ...) -> the same, each row on its own device."""
    return jax.device_put(x, NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS)))


def across_devices(reduce: Callable, tree: PyTree) -> PyTree:
    """reduce (psum, pmean) of the tree over all devices. One device is spared it: XLA:CPU would copy every array."""
    return tree if lax.psum(1, AXIS) == 1 else reduce(tree, AXIS)


def loss_and_hits(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each image's cross-entropy in nats, and whether its largest logit is the label's. (N, K), (N,) -> (N,), (N,)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, logits.argmax(-1) == labels


def predict(model: ResNet, variables: PyTree, images: jax.Array) -> Any:
    """The logits of images in evaluation mode. (N, H, W, C) -> (N, K) float32."""
    return model.apply(variables, images, train=False)


def train_step(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    seed: int,
    state: TrainState,
    data: Dataset,
    rows: jax.Array,
    freeze: bool = False,
) -> tuple[TrainState, Metrics]:
    """One update from this device's share of the batch: rows (B,) of the data set.

    With freeze the head alone is trained, and what is before it runs as in evaluation.
    """
    num_devices = lax.psum(1, AXIS)  # a Python int
    batch = rows.shape[0] * num_devices
    # a key for each place in the global batch, so that augmentation does not depend on the number of devices
    places = lax.axis_index(AXIS) * rows.shape[0] + jnp.arange(rows.shape[0])
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    images = preprocess.train(jax.vmap(partial(jax.random.fold_in, key))(places), data.images[rows])
    labels = data.labels[rows]

    # stochastic depth draws on each device for its own images
    rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key, batch), lax.axis_index(AXIS))}

    def loss(params):
        variables = {"params": state.params | params, "batch_stats": state.batch_stats}
        logits, changed = model.apply(variables, images, train=not freeze, mutable=["batch_stats"], rngs=rngs)
        losses, hits = loss_and_hits(logits, labels)
        correct = hits.sum(dtype=jnp.float32)  # exact up to 2^24, and of one type with all that crosses devices
        return losses.sum() / batch, (changed["batch_stats"], losses.sum(), correct)

    params = trained(state.params, freeze)
    grads, (batch_stats, loss_sum, correct) = jax.grad(loss, has_aux=True)(params)
    # each device's gradient is of its share of the mean loss, so their sum is the mean's; one all-reduce carries all.
    # Behind the barrier, XLA cannot fuse a layer's update into the backward pass of the layers before it, which would
    # wait for that layer's gradient then (GPUs: 18 all-reduces for resnext18; benchmarks/ahead_of_time.py counts them).
    # One device has nothing to wait for, and the barrier costs it nothing
    grads, loss_sum, correct = lax.optimization_barrier(across_devices(lax.psum, (grads, loss_sum, correct)))
    metrics = Metrics(loss=loss_sum, correct=correct.astype(jnp.int32), count=jnp.int32(batch))
    if model.axis_name is None:  # each device has statistics of its own: keep their mean
        batch_stats = across_devices(lax.pmean, batch_stats)
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = state.params | optax.apply_updates(params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), metrics


def eval_step(
    model: ResNet,
    preprocess: Preprocess,
    params: PyTree,
    batch_stats: PyTree,
    data: Dataset,
    rows: jax.Array,
) -> Metrics:
    """The metrics of this device's rows (B,); a row of -1 is padding and counts nothing."""
    images = preprocess.evaluate(data.images[rows])
    logits = predict(model, {"params": params, "batch_stats": batch_stats}, images)
    real = rows >= 0
    losses, hits = loss_and_hits(logits, data.labels[rows])
    sums = Metrics(loss=jnp.where(real, losses, 0).sum(), correct=(hits & real).sum(), count=real.sum())
    return lax.psum(sums, AXIS)


def make_train_steps(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    seed: int,
    devices: Sequence[Device],
    freeze: bool = False,
) -> Callable[[int], Callable[..., tuple[TrainState, Metrics]]]:
    """num_steps -> a call of the devices that makes so many updates, and gives the sums of their metrics.

    The call takes (state, data, rows, first): state is used up; rows (devices, steps of the epoch, B / devices) are
    indices into data; first () int32 is the first step to make.
    """
    step = partial(train_step, model, optimizer, preprocess, seed, freeze=freeze)

    @cache
    def train_steps(num_steps: int):
        def run(state, data, rows, first):
            if num_steps == 1:  # on the CPU a convolution inside a scan is many times slower
                return step(state, data, rows[first])
            mine = lax.dynamic_slice_in_dim(rows, first, num_steps)
            state, metrics = lax.scan(lambda state, rows: step(state, data, rows), state, mine)
            return state, jax.tree.map(lambda sums: sums.sum(0), metrics)

        return jax.pmap(
            run,
            axis_name=AXIS,
            in_axes=(None, None, 0, None),
            out_axes=None,
            devices=devices,
            donate_argnums=0,
        )

    return train_steps


def make_eval_step(model: ResNet, preprocess: Preprocess, devices: Sequence[Device]) -> Callable[..., Metrics]:
    """A call of the devices: (params, batch_stats, data, rows (devices, B / devices)) -> metrics."""
    step = partial(eval_step, model, preprocess)
    return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, None, 0), out_axes=None, devices=devices)


def epoch_rows(seed: int, epoch: int, num_images: int, batch_size: int, num_devices: int) -> np.ndarray:
    """The order of an epoch, a pure function of (seed, epoch): (devices, steps, B / devices) int32.

    The num_images % batch_size images at the end of the permutation sit this epoch out.
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
