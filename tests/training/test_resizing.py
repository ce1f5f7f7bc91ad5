"""Progressive resizing: which size an epoch has, what the network then sees, and how often it compiles."""

from typing import Any

import jax
import made
import numpy as np
import optax
import pytest
from flax import linen as nn
from made import without_timings

import resnet_jax
from resnet_jax.errors import ConfigError
from resnet_jax.training.trainer import Trainer

RNG = np.random.default_rng(6)
LABELS = (np.arange(36) % 3).astype(np.int32)
IMAGES = RNG.integers(0, 256, (36, 8, 8, 1)).astype(np.uint8)
DATA: Any = resnet_jax.data.from_arrays(IMAGES, LABELS, validation=12, seed=0)


class Sizes(nn.Module):
    """A linear model of the mean pixel. In training it keeps the height of its images."""

    @nn.compact
    def __call__(self, x, train=False):
        height = self.variable("batch_stats", "height", lambda: jax.numpy.zeros(()))
        if train and not self.is_initializing():
            height.value = height.value * 0 + x.shape[1]
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Heights:
    """The height of the training images of each epoch."""

    def __init__(self):
        self.seen = []

    def on_epoch_end(self, loop):
        self.seen.append(float(loop.state.batch_stats["height"]))


def fitted(model=None, **changes):
    options: dict[str, Any] = {"max_epochs": 4, "batch_size": 12, "devices": 1, "progress": False, **changes}
    return Trainer(**options).fit(model or Sizes(), DATA)


def test_each_epoch_has_its_size():
    """An epoch before the first pair has the size of the evaluation."""
    heights = Heights()
    fitted(sizes=[(2, 4), (3, (6, 5)), (4, 8)], callbacks=[heights])
    assert heights.seen == [8, 4, 6, 8]


def test_the_final_size_alone_changes_nothing():
    plain, same = fitted(), fitted(sizes=[(1, 8)])
    assert without_timings(plain.history) == without_timings(same.history)
    jax.tree.map(np.testing.assert_array_equal, plain.variables, same.variables)


def test_a_small_epoch_is_one_of_small_images():
    """Trained at 4x4: the fit of another Trainer, whose images are 4x4 in evaluation as well."""
    small = fitted(sizes=[(1, 4)], max_epochs=2)
    other = fitted(image_size=4, max_epochs=2)
    jax.tree.map(np.testing.assert_array_equal, small.variables, other.variables)
    evaluated = Trainer(batch_size=12, devices=1).evaluate(Sizes(), small.variables, DATA.validation)
    assert small.history[-1]["validation_loss"] == evaluated.mean_loss


def test_a_size_is_compiled_once():
    """Two sizes: as many programs for six changes as for one, and no more in a later epoch of a size."""
    with made.compilations() as one:
        fitted(sizes=[(1, 4), (2, 6)], max_epochs=2)
    with made.compilations() as six:
        fitted(sizes=[(1, 4), (2, 6), (3, 4), (4, 6), (5, 4), (6, 6)], max_epochs=6)
    assert len(six) <= len(one)
    with made.compilations() as three:
        fitted(sizes=[(1, 4), (2, 6), (3, 5)], max_epochs=3)
    assert len(three) <= len(one) + 1


class Flat(nn.Module):
    """Its parameters depend on the size of the images."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([(2, 4), (1, 8)], "the epochs 2, 1 are out of order"),
        ([(1, 4), (1, 8)], "the epochs 1, 1 are out of order"),
        ([(0, 4)], "sizes: an epoch 0 must be at least 1"),
        ([(1, 0)], "sizes: a height 0 must be at least 1"),
        ([(1, (4, 0))], "sizes: a width 0 must be at least 1"),
        ([(1, 4.5)], "give pairs"),
        ([4, 8], "give pairs"),
        ("1:4", "give pairs"),
        ([(i, i) for i in range(1, 10)], "give at most 8"),
    ],
)
def test_invalid_sizes_are_refused(sizes, says):
    with pytest.raises(ConfigError, match=says):
        fitted(sizes=sizes)


def test_a_model_that_depends_on_the_size_is_refused():
    with pytest.raises(ConfigError, match="Flat has other parameters for images of 4x4 pixels than for 8x8"):
        fitted(Flat(), sizes=[(1, 4)])
    with pytest.raises(ConfigError, match="image size 2x2 is too small"):
        fitted(resnet_jax.create_model("resnet20", 3, width=0.5), sizes=[(1, 2)], optimizer=optax.sgd(0.1))
