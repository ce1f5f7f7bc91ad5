"""The train step against plain jax.grad and SGD by hand, and against itself on other numbers of devices."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax import lax
from jax import numpy as jnp
from made import BATCH, NETS, STEPS, assert_trees_close, compilations, make_splits
from thorough import thorough_except

from resnet_jax import train_step
from resnet_jax.data.augment import Preprocess, Source, crop, flip
from resnet_jax.errors import ConfigError
from resnet_jax.models import create_model
from resnet_jax.runs import OptimConfig
from resnet_jax.runs.build import make_optimizer, make_schedule
from resnet_jax.training.losses import cross_entropy
from resnet_jax.training.parallel import AXIS, replicate, shard
from resnet_jax.training.state import TrainState, create_state
from resnet_jax.training.step import (
    Dataset,
    Metrics,
    epoch_rows,
    eval_rows,
    make_eval_step,
    make_train_steps,
)

# Sums over devices are added in another order: float32's rounding, grown by three or more steps of batch norm.
RTOL, ATOL = 1e-4, 2e-5

TRAIN = make_splits().train
PLAIN = Preprocess((8, 8))
AUGMENTED = Preprocess((8, 8), (0.5, 0.25), (flip, crop(1)))
SGD = OptimConfig(0.05)


def make(num_devices: int, optim: OptimConfig, preprocess: Preprocess = PLAIN, sync: bool = True):
    """What a run has on its devices: a new state, data, the rows of the first epoch and train_steps."""
    state, data, steps = build(num_devices, optim, preprocess, sync)
    devices = jax.devices()[:num_devices]
    rows = epoch_rows(0, 0, len(TRAIN.labels), BATCH, num_devices)
    return replicate(state, devices), data, shard(rows, devices), steps


@functools.cache
def build(num_devices: int, optim: OptimConfig, preprocess: Preprocess, sync: bool):
    """The state of step 0, on the host, the data and train_steps."""
    devices = jax.devices()[:num_devices]
    model = create_model(NETS[0], 4, axis_name=AXIS if sync else None)
    state = jax.device_get(create_state(model, optimizer_of(optim), (8, 8, 1)))
    data = replicate(Dataset.of(*TRAIN), devices)
    return state, data, make_train_steps(preprocess, devices)


@functools.cache
def optimizer_of(optim: OptimConfig) -> optax.GradientTransformation:
    """One object, so that states of different numbers of devices have the same form."""
    return make_optimizer(optim, make_schedule(optim, 1, STEPS))


def run(num_devices: int, *args: Any, **kwargs: Any) -> tuple[TrainState, list[Metrics]]:
    """An epoch, one step a call."""
    state, data, rows, steps = make(num_devices, *args, **kwargs)
    curve = []
    for position in range(STEPS):
        state, metrics = steps(1)(state, data, rows, np.int32(position))
        curve.append(jax.device_get(metrics))
    return jax.device_get(state), curve


@functools.cache
def plain_gradient():
    """The mean loss of a batch, its gradient, statistics and hits: the network with no axis, no pmap, no psum."""
    model = create_model(NETS[0], 4)

    def loss(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
        picked = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        return -picked.mean(), (new["batch_stats"], (logits.argmax(1) == labels).sum())

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def batch_of_step(position: int) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1] and labels that an epoch of seed 0 takes at that step."""
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(TRAIN.labels))
    rows = order[position * BATCH : (position + 1) * BATCH]
    return TRAIN.images[rows].astype(np.float32) / 255, TRAIN.labels[rows]


def sgd_by_hand(params, grads, buffers, rate: float, optim: OptimConfig):
    """PyTorch's torch.optim.SGD, leaf by leaf, with the decay on kernels only."""
    new_params, new_buffers = {}, {}
    for path in params:
        g = grads[path]
        if path[-1] == "kernel":
            g = g + optim.weight_decay * params[path]
        new_buffers[path] = b = optim.momentum * buffers[path] + g
        update = g + optim.momentum * b if optim.nesterov else b
        new_params[path] = params[path] - rate * update
    return new_params, new_buffers


def flat(tree: Any) -> dict[tuple[str, ...], np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def unflat(leaves: dict[tuple[str, ...], np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


MOMENTUM = OptimConfig(0.05, "cosine", momentum=0.9, weight_decay=0.01)
NESTEROV = dataclasses.replace(MOMENTUM, nesterov=True)


@pytest.mark.parametrize(
    "optim",
    thorough_except([SGD, MOMENTUM, NESTEROV], NESTEROV),
    ids=["plain", "momentum", "nesterov"],
)
def test_it_is_the_gradient_of_the_whole_batch_and_sgd(optim):
    state, curve = run(8, optim)
    start = jax.device_get(make(8, optim)[0])
    params, stats = flat(start.params), start.batch_stats
    buffers = {path: np.zeros_like(leaf) for path, leaf in params.items()}
    for position, metrics in enumerate(curve):
        images, labels = batch_of_step(position)
        (loss, (stats, hits)), grads = plain_gradient()(unflat(params), stats, images, labels)
        share = (1 + np.cos(np.pi * position / STEPS)) / 2 if optim.schedule == "cosine" else 1
        params, buffers = sgd_by_hand(params, flat(grads), buffers, 0.05 * share, optim)
        # sums over all devices, not one device's and not means
        np.testing.assert_allclose(metrics.loss, loss * BATCH, RTOL)
        assert (metrics.correct, metrics.count) == (hits, BATCH)
        assert metrics.count.dtype == np.int32  # a float32 sum of ones stops at 2**24
    assert state.step == STEPS
    assert_trees_close(state.params, unflat(params), RTOL, ATOL)
    assert_trees_close(state.batch_stats, stats, RTOL, ATOL)


@pytest.mark.parametrize("num_devices", thorough_except((2, 8), 8))
def test_the_number_of_devices_does_not_matter(num_devices):
    """Loss curve and weights for the same global batches, augmented."""
    optim = OptimConfig(0.05, momentum=0.9, weight_decay=0.01)
    one, one_curve = run(1, optim, AUGMENTED)
    many, curve = run(num_devices, optim, AUGMENTED)
    np.testing.assert_allclose([m.loss for m in curve], [m.loss for m in one_curve], RTOL)
    assert [m.correct for m in curve] == [m.correct for m in one_curve]
    assert [m.count for m in curve] == [BATCH] * STEPS
    assert_trees_close(many, one, RTOL, ATOL)


def test_without_sync_batch_norm_each_device_normalises_its_own_share():
    """The gradient and the running statistics are the means of those of the halves; that is another step."""
    state, (metrics, *_) = run_one_step(sync=False)
    start = jax.device_get(make(2, SGD)[0])
    images, labels = batch_of_step(0)
    halves = [
        plain_gradient()(start.params, start.batch_stats, images[half], labels[half])
        for half in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH))
    ]
    mean = functools.partial(jax.tree.map, lambda a, b: (a + b) / 2)
    (loss, (stats, _)), grads = mean(*halves)
    params = jax.tree.map(lambda p, g: p - 0.05 * g, start.params, grads)
    np.testing.assert_allclose(metrics.loss, loss * BATCH, RTOL)
    assert_trees_close(state.params, params, RTOL, ATOL)
    assert_trees_close(state.batch_stats, stats, RTOL, ATOL)
    synced, _ = run_one_step(sync=True)
    with pytest.raises(AssertionError):
        assert_trees_close(state.params, synced.params, RTOL, ATOL)


def run_one_step(sync: bool) -> tuple[TrainState, list[Metrics]]:
    state, data, rows, steps = make(2, SGD, sync=sync)
    state, metrics = steps(1)(state, data, rows, np.int32(0))
    return jax.device_get(state), [jax.device_get(metrics)]


def test_a_scan_of_steps_is_the_steps_one_by_one():
    optim = OptimConfig(0.05, momentum=0.9)
    single, curve = run(2, optim)
    state, data, rows, steps = make(2, optim)
    state, first = steps(1)(state, data, rows, np.int32(0))
    state, rest = steps(STEPS - 1)(state, data, rows, np.int32(1))
    assert_trees_close(state, single, RTOL, ATOL)
    np.testing.assert_allclose(first.loss, curve[0].loss, RTOL)
    np.testing.assert_allclose(rest.loss, sum(m.loss for m in curve[1:]), RTOL)
    assert (int(rest.correct), int(rest.count)) == (sum(m.correct for m in curve[1:]), BATCH * (STEPS - 1))


def test_the_old_state_is_donated_and_nothing_else():
    old, data, rows, steps = make(2, OptimConfig(0.05, momentum=0.9))
    new, _ = steps(1)(old, data, rows, np.int32(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, data, rows)))


def test_a_step_compiles_once_after_a_restore_too():
    state, data, rows, steps = make(2, OptimConfig(0.05, momentum=0.8))  # no other test has compiled it
    restored = jax.device_get(state)
    with compilations() as programs:
        state, _ = steps(1)(state, data, rows, np.int32(0))
        assert programs  # else it would count nothing
        programs.clear()
        for position in range(1, STEPS):
            state, _ = steps(1)(state, data, rows, np.int32(position))
        steps(1)(replicate(restored, jax.devices()[:2]), data, rows, np.int32(0))
        assert not programs


class Mirror:
    """In place of a network: what it sees becomes its batch statistics."""

    axis_name = AXIS

    def apply(self, variables: Any, images: jax.Array, train: bool, mutable: list[str], rngs: Any):
        logits = jnp.zeros((len(images), 4)) * variables["params"]["w"]
        return logits, {"batch_stats": lax.all_gather(images, AXIS)}


MIRROR: Any = Mirror()
PLAIN_SGD = optax.sgd(0.1)
mirrored = functools.cache(lambda num_devices: make_train_steps(AUGMENTED, jax.devices()[:num_devices])(1))


def seen(num_devices: int, seed: int, step: int) -> np.ndarray:
    """The images that a step's network sees, in the order of the batch."""
    params = {"w": jnp.zeros(())}
    state = TrainState(jnp.int32(step), params, {}, PLAIN_SGD.init(params), {}, jnp.uint32(seed), MIRROR, PLAIN_SGD)
    devices = jax.devices()[:num_devices]
    rows = shard(np.arange(BATCH, dtype=np.int32).reshape(num_devices, 1, -1), devices)
    data = replicate(Dataset.of(*TRAIN), devices)
    new, _ = mirrored(num_devices)(replicate(state, devices), data, rows, np.int32(0))
    return np.asarray(new.batch_stats).reshape(BATCH, 8, 8, 1)


def test_augmentation_is_a_function_of_seed_step_and_place():
    images = seen(1, seed=3, step=5)
    np.testing.assert_array_equal(seen(8, seed=3, step=5), images)
    key = jax.random.fold_in(jax.random.key(3), 5)
    keys = jnp.stack([jax.random.fold_in(key, place) for place in range(BATCH)])
    source = Source(Dataset.of(jnp.asarray(TRAIN.images), jnp.asarray(TRAIN.labels)).lookup, len(TRAIN.labels), 0)
    expected, _ = AUGMENTED.batch(keys, jnp.arange(BATCH), source)
    np.testing.assert_allclose(expected, images, atol=1e-6)
    for other in (seen(1, seed=4, step=5), seen(1, seed=3, step=6)):
        different = (np.abs(other - images) > 1e-6).any((1, 2, 3))
        assert different.mean() > 0.5  # of 18 ways to augment, another one is drawn


# --- the step of a loop of one's own


@pytest.mark.parametrize("form", thorough_except(("pair", "mapping", "bytes", "pmap"), "pair", "pmap"))
def test_a_public_step_is_the_gradient_of_its_batch(form):
    """Whatever holds the batch, and on one device or on two."""
    images, labels = batch_of_step(0)
    model = create_model(NETS[0], 4, axis_name=AXIS if form == "pmap" else None)
    start = create_state(model, optimizer_of(SGD), (8, 8, 1))
    (loss, (stats, hits)), grads = plain_gradient()(start.params, start.batch_stats, images, labels)
    if form == "pmap":
        shares = [np.reshape(x, (2, -1, *x.shape[1:])) for x in (images, labels)]
        mapped = jax.pmap(train_step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:2])
        state, metrics = mapped(start, tuple(shares))
    else:
        batch = {
            "pair": (images, labels),
            "mapping": {"image": images, "label": labels},
            "bytes": ((images * 255).round().astype(np.uint8), labels),
        }[form]
        state, metrics = jax.jit(train_step)(start, batch)
    np.testing.assert_allclose(metrics.loss, loss * BATCH, RTOL)
    np.testing.assert_allclose(metrics.mean_loss, loss, RTOL)
    assert (metrics.correct, metrics.count, state.step) == (hits, BATCH, 1)
    assert metrics.accuracy == hits / BATCH
    assert_trees_close(state.params, jax.tree.map(lambda p, g: p - 0.05 * g, start.params, grads), RTOL, ATOL)
    assert_trees_close(state.batch_stats, stats, RTOL, ATOL)


class Counting:
    """In place of a network: statistics of a device's own images, some of them whole numbers."""

    def apply(self, variables: Any, images: jax.Array, train: bool, mutable: list[str], rngs: Any):
        logits = jnp.zeros((len(images), 4)) * variables["params"]["w"]
        highest = jnp.rint(255 * images.max()).astype(jnp.int32)
        stats = {"mean": images.mean(), "steps": variables["batch_stats"]["steps"] + 1, "highest": highest}
        return logits, {"batch_stats": stats}


def test_statistics_of_two_devices_are_averaged_and_whole_numbers_are_the_largest():
    counting: Any = Counting()
    params, stats = {"w": jnp.zeros(())}, {"mean": 0.0, "steps": jnp.int32(7), "highest": jnp.int32(0)}
    state = TrainState(jnp.int32(0), params, stats, PLAIN_SGD.init(params), {}, jnp.uint32(0), counting, PLAIN_SGD)
    images = np.stack([TRAIN.images[:4] // 2, TRAIN.images[4:8]])
    shares = images, np.zeros((2, 4), np.int32)
    step = jax.pmap(train_step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:2])
    found = step(state, shares)[0].batch_stats
    assert (found["steps"], found["highest"]) == (8, images.max())
    assert found["steps"].dtype == found["highest"].dtype == np.int32
    np.testing.assert_allclose(found["mean"], np.mean([(x / 255).mean() for x in images]), rtol=1e-6)


@pytest.mark.parametrize("batch", [{"pixels": 1, "label": 2}, (1, 2, 3), np.zeros((2, 8, 8, 1))])
def test_a_batch_without_images_and_labels(batch):
    state = jax.eval_shape(lambda: create_state(create_model(NETS[0], 4), optimizer_of(SGD), (8, 8, 1)))
    with pytest.raises(ConfigError, match=r"give .images, labels., or a mapping with the keys image and label"):
        train_step(state, batch)


# --- evaluation


class Linear:
    """In place of a network, so that many sizes compile in no time."""

    def apply(self, variables: Any, images: jax.Array, train: bool) -> jax.Array:
        assert not train
        return images.reshape(len(images), -1) @ variables["params"] + variables["batch_stats"]


@pytest.mark.parametrize("num_devices", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("num_images", [1, 37])
def test_evaluation_is_exact_for_every_size(num_images, batch_size, num_devices):
    devices = jax.devices()[:num_devices]
    images, labels = (x[:num_images] for x in make_splits().test)
    weights = np.random.default_rng(0).standard_normal((64, 4), np.float32)
    bias = np.array([0, 0, 9, 0], np.float32)  # padding shows image 36, or 9: it must count nothing
    model: Any = Linear()
    step = make_eval_step(model, cross_entropy, PLAIN, devices)
    variables = {"params": weights, "batch_stats": bias}
    data = replicate(Dataset.of(images, labels), devices)
    sums = [
        jax.device_get(step(variables, data, shard(rows, devices)))
        for rows in eval_rows(num_images, batch_size, num_devices)
    ]
    logits = images.reshape(num_images, -1).astype(np.float64) / 255 @ weights + bias
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(num_images), labels]
    assert sum(m.count for m in sums) == num_images
    assert sum(m.correct for m in sums) == (logits.argmax(1) == labels).sum()
    np.testing.assert_allclose(sum(float(m.loss) for m in sums), losses.sum(), 1e-5)


@pytest.mark.parametrize("num_devices", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 8, 64])
@pytest.mark.parametrize("num_images", [1, 10, 37, 64])
def test_evaluation_takes_every_image_once(num_images, batch_size, num_devices):
    rows = eval_rows(num_images, batch_size, num_devices)
    assert sorted(rows[rows >= 0]) == list(range(num_images))
    assert set(rows[rows < 0]) <= {-1}
    assert rows.shape[1:] == (num_devices, -(-batch_size // num_devices))
    assert (rows[:-1] >= 0).all()  # no call of the devices more than it takes


# --- the order of images


def order(seed: int, epoch: int, num_images: int = 103, batch_size: int = 24, num_devices: int = 1) -> np.ndarray:
    """The rows of an epoch in the order in which they are trained on."""
    rows = epoch_rows(seed, epoch, num_images, batch_size, num_devices)
    assert rows.shape == (num_devices, num_images // batch_size, batch_size // num_devices)
    return rows.swapaxes(0, 1).ravel()


def test_an_epoch_takes_no_image_twice():
    rows = order(0, 0)
    assert len(rows) == 96
    assert len(set(rows)) == 96
    assert set(rows) <= set(range(103))
    assert sorted(order(0, 0, batch_size=1)) == list(range(103))


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = [tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    np.random.default_rng().random()  # no state of anyone's comes in
    assert [tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)] == orders


@pytest.mark.parametrize("num_devices", [2, 3, 8])
def test_the_order_is_that_of_one_device(num_devices):
    np.testing.assert_array_equal(order(5, 7, num_devices=num_devices), order(5, 7))


def test_every_image_gets_to_be_left_out():
    """The few that sit out are others each epoch: after many, each has been trained on about as often."""
    counts = np.bincount(np.concatenate([order(0, epoch) for epoch in range(400)]), minlength=103)
    expected = 400 * 96 / 103
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected * 7 / 103)
