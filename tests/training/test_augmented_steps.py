"""Augmentation in the step: the same on any number of devices, in scans, and by a loop of one's own."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax import lax
from jax import numpy as jnp
from made import BATCH, NETS, STEPS, assert_trees_close, make_splits
from thorough import thorough_except

import resnet_jax
from resnet_jax import train_step
from resnet_jax.data import ImageDataset
from resnet_jax.data.augment import (
    Preprocess,
    alternating_flip,
    brightness,
    crop,
    cutmix,
    erasing,
    mixup,
    rand_augment,
    rotate,
)
from resnet_jax.errors import ConfigError
from resnet_jax.models import create_model
from resnet_jax.training.losses import cross_entropy, hits
from resnet_jax.training.parallel import AXIS, replicate, shard
from resnet_jax.training.preview import preview
from resnet_jax.training.state import TrainState, create_state
from resnet_jax.training.step import Dataset, epoch_rows, make_train_steps, training_batch

TRAIN = make_splits().train
CLASSES = 4
MOVED = (crop(1, "reflect"), alternating_flip, rotate(10), brightness(0.2), rand_augment(), erasing())
ALL = (*MOVED, mixup(1.0), cutmix())
PREPROCESS = Preprocess((8, 8), (0.5, 0.25), ALL)
SGD = optax.sgd(0.05, momentum=0.9)
RTOL, ATOL = 1e-4, 2e-5  # sums over devices are added in another order


def run(num_devices: int, steps_per_call: int = 1) -> tuple[TrainState, list[Any]]:
    """Two epochs, with the metrics of each call."""
    devices = jax.devices()[:num_devices]
    state = replicate(start(), devices)
    data, steps = replicate(Dataset.of(*TRAIN, CLASSES), devices), make_train_steps(PREPROCESS, devices)
    curve = []
    for epoch in range(2):
        rows = shard(epoch_rows(0, epoch, len(TRAIN.labels), BATCH, num_devices), devices)
        for first in range(0, STEPS, steps_per_call):
            count = min(steps_per_call, STEPS - first)
            state, metrics = steps(count)(state, data, rows, np.int32(first))
            curve.append(jax.device_get(metrics))
    return jax.device_get(state), curve


@functools.cache
def start() -> TrainState:
    return jax.device_get(create_state(create_model(NETS[0], CLASSES, axis_name=AXIS), SGD, (8, 8, 1)))


@functools.cache
def on_one_device() -> tuple[TrainState, list[Any]]:
    return run(1)


@pytest.mark.parametrize("num_devices", thorough_except((2, 8), 2))
def test_the_number_of_devices_does_not_matter(num_devices):
    one, one_curve = on_one_device()
    many, curve = run(num_devices)
    np.testing.assert_allclose([m.loss for m in curve], [m.loss for m in one_curve], RTOL)
    assert [m.correct for m in curve] == [m.correct for m in one_curve]
    assert_trees_close(many, one, RTOL, ATOL)


@pytest.mark.thorough
def test_a_scan_makes_the_same_steps():
    one, curve = on_one_device()
    scanned, sums = run(1, STEPS)
    np.testing.assert_allclose(sums[1].loss, sum(m.loss for m in curve[STEPS:]), RTOL)
    assert_trees_close(scanned, one, RTOL, ATOL)


def test_the_loss_is_the_cross_entropy_of_distributions():
    """Of the first step, by hand: images and labels of training_batch, and the plain network."""
    _, (first, *_) = on_one_device()
    rows = epoch_rows(0, 0, len(TRAIN.labels), BATCH, 1)[0, 0]
    data = Dataset.of(jnp.asarray(TRAIN.images), jnp.asarray(TRAIN.labels), CLASSES)
    images, labels = training_batch(PREPROCESS, data, 0, 0, 0, jnp.asarray(rows), jnp.arange(BATCH))
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    state = start()
    model = create_model(NETS[0], CLASSES)
    logits, _ = model.apply(state.variables, images, train=True, mutable=["batch_stats"])
    expected = -(np.asarray(labels) * np.asarray(jax.nn.log_softmax(logits))).sum()
    np.testing.assert_allclose(first.loss, expected, RTOL)
    assert first.correct == (np.asarray(logits).argmax(1) == np.asarray(labels).argmax(1)).sum()


class Mirror:
    """In place of a network: what it sees becomes its batch statistics."""

    axis_name = AXIS

    def apply(self, variables: Any, images: jax.Array, train: bool, mutable: list[str], rngs: Any):
        return jnp.zeros((len(images), CLASSES)) * variables["params"]["w"], {
            "batch_stats": lax.all_gather(images, AXIS, tiled=True)
        }


@functools.cache
def mirrored(num_devices: int):
    preprocess = Preprocess(augment=(alternating_flip,))
    return make_train_steps(preprocess, jax.devices()[:num_devices])(1)


def seen(num_devices: int, step: int) -> np.ndarray:
    """The images of the first rows that a step sees, in the order of the batch. STEPS steps are an epoch."""
    model: Any = Mirror()
    params = {"w": jnp.zeros(())}
    state = TrainState(jnp.int32(step), params, {}, SGD.init(params), {}, jnp.uint32(0), model, SGD)
    devices = jax.devices()[:num_devices]
    rows = np.repeat(np.arange(BATCH, dtype=np.int32).reshape(num_devices, 1, -1), STEPS, axis=1)
    data = replicate(Dataset.of(*TRAIN), devices)
    new, _ = mirrored(num_devices)(replicate(state, devices), data, shard(rows, devices), np.int32(0))
    return np.asarray(new.batch_stats)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_an_alternating_flip_counts_epochs(num_devices):
    first, again, second = (seen(num_devices, step) for step in (0, STEPS - 1, STEPS))
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(second, first[:, :, ::-1])
    plain = TRAIN.images[:BATCH] / np.float32(255)
    mirrored = [np.allclose(image, old[:, ::-1]) for image, old in zip(first, plain, strict=True)]
    assert 0 < sum(mirrored) < BATCH
    np.testing.assert_array_equal(first, seen(1, 0))


def test_the_preview_is_the_batch_of_the_step():
    """With and without other images of the data set, which it needs for mixing alone."""
    data = ImageDataset(TRAIN, class_names=tuple("abcd"))
    rows = epoch_rows(3, 1, len(TRAIN.labels), BATCH, 1)[0, 1]
    held = Dataset.of(jnp.asarray(TRAIN.images), jnp.asarray(TRAIN.labels), CLASSES)
    for augment in (ALL, MOVED):
        normal = Preprocess(None, (0.5, 0.25), augment)
        images, labels = preview(normal, data, rows[:5], seed=3, step=STEPS + 1, epoch=1)
        expected, its_labels = training_batch(
            Preprocess(augment=augment), held, 3, STEPS + 1, 1, jnp.asarray(rows), jnp.arange(BATCH)
        )
        np.testing.assert_allclose(images, expected[:5], atol=1e-5)
        np.testing.assert_allclose(labels, its_labels[:5], atol=1e-6)
        assert 0 <= images.min() <= images.max() <= 1


def test_a_step_of_ones_own_with_mixed_labels():
    """train_step takes what apply returns."""
    images, labels = jnp.asarray(TRAIN.images[:8]), jnp.asarray(TRAIN.labels[:8])
    mixed, targets = resnet_jax.augment.apply([mixup(1.0)], jax.random.key(0), images, labels, CLASSES)
    state = create_state(create_model(NETS[0], CLASSES), SGD, (8, 8, 1))
    _, metrics = jax.jit(train_step)(state, (mixed, targets))
    logits, _ = state.model.apply(state.variables, mixed, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(metrics.loss, optax.softmax_cross_entropy(logits, targets).sum(), RTOL)


def test_losses_and_hits_of_distributions():
    """A distribution with one class is the integer; in a mixture the larger share counts."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, CLASSES)), jnp.float32)
    labels = jnp.array([0, 1, 2, 3, 1, 2])
    certain = jax.nn.one_hot(labels, CLASSES)
    np.testing.assert_allclose(cross_entropy(logits, certain), cross_entropy(logits, labels), 1e-6)
    np.testing.assert_array_equal(hits(logits, certain), hits(logits, labels))
    other = jax.nn.one_hot((labels + 1) % CLASSES, CLASSES)
    mixture = 0.7 * certain + 0.3 * other
    halves = 0.7 * cross_entropy(logits, certain) + 0.3 * cross_entropy(logits, other)
    np.testing.assert_allclose(cross_entropy(logits, mixture), halves, 1e-6)
    np.testing.assert_array_equal(hits(logits, mixture), hits(logits, labels))


def picked(logits, labels):
    """A loss that takes integers alone."""
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]


@pytest.mark.parametrize(
    ("augment", "loss", "message"),
    [
        ([mixup()], picked, r"^loss: mixup and cutmix make labels \(N, K\) of floats, .* which it does not take \("),
        ([mixup()], lambda logits, labels: optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 4)), "^loss: "),
        ([erasing], cross_entropy, r"^augment: <class .*> is no function of \(key, image\); write erasing\(\)"),
        ([crop(8)], cross_entropy, r"^augment \(--augment\): crop by 8 pixels: the images have 8x8; use less than 8"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_compiled(augment, loss, message):
    data = ImageDataset(TRAIN, class_names=tuple("abcd"))
    trainer = resnet_jax.Trainer(max_epochs=1, batch_size=BATCH, augment=augment, loss=loss, progress=False)
    with pytest.raises(ConfigError, match=message):
        trainer.fit(create_model(NETS[0], CLASSES), data)


@pytest.mark.thorough
def test_a_trainer_mixes_with_the_mean_of_a_loss():
    """A loss that returns the mean of distributions, on two devices, with an evaluation of integers."""

    def mean_loss(logits, labels):
        targets = labels if labels.ndim == 2 else jax.nn.one_hot(labels, CLASSES)
        return optax.softmax_cross_entropy(logits, targets).mean()

    data = ImageDataset(TRAIN, TRAIN, class_names=tuple("abcd"))
    first, second = (
        resnet_jax.Trainer(
            max_epochs=1, batch_size=BATCH, augment=[mixup(1.0)], loss=loss, devices=devices, progress=False
        ).fit(create_model(NETS[0], CLASSES), data).history[0]
        for loss, devices in ((mean_loss, 2), (cross_entropy, 1))
    )  # fmt: skip
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
        assert first[name] == pytest.approx(second[name], rel=1e-3)
