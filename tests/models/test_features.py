"""The outputs of stem and stages, against Flax's own capture and against the head."""

from functools import partial

import flax_side
import jax
import numpy as np
import pytest
import seeded
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax import ResNet, create_model
from resnet_jax.errors import ConfigError
from resnet_jax.models import PreActBlock, features

SHAPE = (2, 12, 12, 3)
MODELS = {
    "residual": ResNet(((1, 8), (2, 16)), stem_channels=8),
    "preact": ResNet(((1, 8), (1, 16)), block=PreActBlock, preact=True, stem="small", stem_channels=8),
    "group norm": ResNet(((1, 8), (1, 16)), stem_channels=8, norm=partial(nn.GroupNorm, num_groups=4)),
    "remat": ResNet(((1, 8), (1, 16)), stem_channels=8, remat=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_the_whole_network_computes(name):
    model, x = MODELS[name], seeded.normal("features", SHAPE)
    held = flax_side.variables(model, SHAPE)
    found = jax.jit(partial(features, model))(held, x)
    assert set(found) == {"stem", "stage1", "stage2", "pooled"}
    logits, state = flax_side.apply(model, held, x, capture_intermediates=True, mutable=["intermediates"])
    for part in ("stem", "stage1", "stage2"):
        np.testing.assert_allclose(found[part], state["intermediates"][part]["__call__"][0], atol=1e-5)
    head = held["params"]["head"]
    np.testing.assert_allclose(found["pooled"] @ head["kernel"] + head["bias"], logits, atol=1e-5)
    if name != "preact":  # there a norm follows the last stage
        np.testing.assert_allclose(found["stage2"].mean((1, 2)), found["pooled"], atol=1e-5)


def test_no_classes_no_head():
    model, whole = create_model("resnet20", 0), create_model("resnet20")
    held = flax_side.variables(whole, (1, 8, 8, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert set(shapes["params"]) == set(held["params"]) - {"head"}
    x = seeded.normal("pooled", (2, 8, 8, 3))
    pooled = jax.jit(model.apply)(held, x)
    assert (pooled.shape, pooled.dtype) == ((2, 64), jnp.float32)
    np.testing.assert_array_equal(pooled, jax.jit(partial(features, whole))(held, x)["pooled"])
    with pytest.raises(ConfigError, match="num_classes -1 must be at least 1, or 0"):
        create_model("resnet20", -1)


def test_features_of_another_module():
    with pytest.raises(ConfigError, match="model is a Dense; use a ResNet"):
        features(nn.Dense(3), {}, jnp.zeros(SHAPE))
