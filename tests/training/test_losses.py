"""Losses against their formulas."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.training.losses import SmoothedCrossEntropy, cross_entropy, in_evaluation

LOGITS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 2, 1, 3], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothing_is_the_cross_entropy_of_smoothed_targets(smoothing):
    targets = np.full((6, 5), smoothing / 5)
    targets[np.arange(6), LABELS] += 1 - smoothing
    expected = -(targets * np.asarray(jax.nn.log_softmax(LOGITS))).sum(1)
    found = SmoothedCrossEntropy(smoothing)(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, expected, 1e-5)


def test_evaluation_has_the_plain_loss():
    def own(logits, labels):
        return logits.sum()

    assert in_evaluation(SmoothedCrossEntropy(0.1)) is cross_entropy
    assert in_evaluation(own) is own


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_is_out_of_range(smoothing):
    with pytest.raises(ConfigError, match=r"smoothing .* must be at least 0 and below 1"):
        SmoothedCrossEntropy(smoothing)
