"""Flip averaging: the mean of the probabilities of image and mirror image, beside figures that stay as they were."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from made import without_timings

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.training.losses import SmoothedCrossEntropy
from resnet_jax.training.trainer import Trainer

RNG = np.random.default_rng(5)
LABELS = (np.arange(48) % 3).astype(np.int32)
IMAGES = RNG.integers(0, 256, (48, 6, 5, 1)).astype(np.uint8)
DATA: Any = resnet_jax.data.from_arrays(IMAGES, LABELS, validation=12, seed=0)


class Net(nn.Module):
    """Each pixel has a weight of its own, so a mirror image has other logits."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


def fitted(*callbacks, data=DATA, **options):
    trainer = Trainer(max_epochs=2, batch_size=7, devices=1, progress=False, callbacks=callbacks, **options)
    return trainer.fit(Net(), data)


def averaged(variables, part):
    """(mean loss, accuracy) in NumPy."""
    model: Any = Net()
    pair = (model.apply(variables, x / np.float32(255)) for x in (part.images, part.images[:, :, ::-1]))
    first, second = (np.asarray(jax.nn.softmax(logits), np.float64) for logits in pair)
    mean = (first + second) / 2
    return -np.log(mean[np.arange(len(mean)), part.labels]).mean(), (mean.argmax(1) == part.labels).mean()


def test_the_figures_are_those_of_the_averaged_probabilities():
    """12 images in batches of 7: padding does not count. All other figures are those of a fit without the callback."""
    result = fitted(resnet_jax.FlipAveraging())
    loss, accuracy = averaged(result.variables, DATA.validation)
    row = result.history[-1]
    assert row["validation_flip_loss"] == pytest.approx(loss, rel=1e-5)
    assert row["validation_flip_accuracy"] == pytest.approx(accuracy)
    assert row["validation_flip_loss"] != row["validation_loss"]
    others = [{key: value for key, value in row.items() if "flip" not in key} for row in result.history]
    assert without_timings(others) == without_timings(fitted().history)


def squares(logits, labels):
    """A loss whose value changes if a constant is added to the logits; infinite for logits that sum to less than -3."""
    losses = ((logits - jax.nn.one_hot(labels, 3)) ** 2).sum(-1)
    return jnp.where(logits.sum(-1) < -3, jnp.inf, losses)


def test_a_loss_of_ones_own_does_not_see_averaged_probabilities():
    """Their logarithms sum to -3 log 3 or less. The accuracy is the same as that of the cross-entropy."""
    result = fitted(resnet_jax.FlipAveraging(), loss=squares)
    _, accuracy = averaged(result.variables, DATA.validation)
    row = result.history[-1]
    assert row["validation_flip_accuracy"] == pytest.approx(accuracy)
    assert "validation_flip_loss" not in row


def test_the_loss_of_a_smoothed_training_is_the_plain_one():
    result = fitted(resnet_jax.FlipAveraging(), loss=SmoothedCrossEntropy(0.3))
    loss, _ = averaged(result.variables, DATA.validation)
    assert result.history[-1]["validation_flip_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_test_part_comes_first():
    tested = dataclasses.replace(DATA, test=DATA.validation)
    row = fitted(resnet_jax.FlipAveraging(), data=tested).history[-1]
    assert [key for key in row if "flip" in key] == ["test_flip_loss", "test_flip_accuracy"]


def test_data_without_a_part_is_refused():
    data = resnet_jax.data.from_arrays(IMAGES, LABELS, validation=0)
    with pytest.raises(ConfigError, match="the data has neither a test nor a validation part"):
        fitted(resnet_jax.FlipAveraging(), data=data)
