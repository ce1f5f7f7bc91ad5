"""Schedules against their formulas; the optimizer itself is held against SGD by hand in test_step.py."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from made import NETS

from resnet_jax.models import create_model
from resnet_jax.runs import OptimConfig
from resnet_jax.runs.build import make_optimizer, make_schedule
from resnet_jax.training.optim import is_kernel
from resnet_jax.training.state import create_state

EPOCHS, STEPS = 5, 8  # 40 steps


def rates(config: OptimConfig) -> np.ndarray:
    schedule = make_schedule(config, EPOCHS, STEPS)
    return np.array([schedule(step) for step in range(EPOCHS * STEPS)])


def test_constant():
    np.testing.assert_allclose(rates(OptimConfig(0.3)), 0.3, 1e-6)


def test_cosine():
    steps = np.arange(40)
    np.testing.assert_allclose(
        rates(OptimConfig(0.3, "cosine")), 0.3 * (1 + np.cos(np.pi * steps / 40)) / 2, 1e-5, 1e-7
    )


@pytest.mark.parametrize("warmup", [0.5, 2.0])
def test_warm_up_and_cosine(warmup):
    steps, first = np.arange(40), int(warmup * STEPS)
    expected = np.where(
        steps < first, 0.3 * steps / first, 0.3 * (1 + np.cos(np.pi * (steps - first) / (40 - first))) / 2
    )
    np.testing.assert_allclose(rates(OptimConfig(0.3, "cosine", warmup)), expected, 1e-5, 1e-7)


def test_warm_up_and_constant():
    steps = np.arange(40)
    np.testing.assert_allclose(rates(OptimConfig(0.3, warmup_epochs=2)), 0.3 * np.minimum(steps / 16, 1), 1e-5, 1e-7)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_steps(warmup):
    """The epochs of the decays are those of the run, whatever the warm-up."""
    steps = np.arange(40)
    powers = (steps >= 16) * 1 + (steps >= 28) * 1
    expected = 0.3 * 0.2**powers * (np.minimum(steps / 8, 1) if warmup else 1)
    config = OptimConfig(0.3, "step", warmup, decay_epochs=(2, 3.5), decay_factor=0.2)
    np.testing.assert_allclose(rates(config), expected, 1e-5, 1e-7)


def small_params():
    model = create_model(NETS[0], 4)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))["params"]
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)


def test_weight_decay_is_of_kernels_only():
    """Gradients of 0: what is left of each parameter after a step is what the decay leaves."""
    params = small_params()
    optimizer = make_optimizer(OptimConfig(0.1, weight_decay=0.2), lambda step: 0.1)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    names = set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        names.add(path[-1].key)
        np.testing.assert_allclose(update, -0.02 if path[-1].key == "kernel" else 0, 1e-6)
    assert names == {"kernel", "bias", "scale"}


def test_kernels_are_what_has_more_than_one_axis():
    params = small_params()
    assert is_kernel(params) == jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize(("momentum", "buffers"), [(0.0, 0), (0.9, 1)])
def test_a_buffer_is_kept_only_for_momentum(momentum, buffers):
    params = small_params()
    state = make_optimizer(OptimConfig(0.1, momentum=momentum), lambda step: 0.1).init(params)
    held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert held == buffers * sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_first_state_is_a_function_of_the_seed():
    model, optimizer = create_model(NETS[0], 4), make_optimizer(OptimConfig(), lambda step: 0.1)
    states = (create_state(model, optimizer, (8, 8, 1), seed=seed) for seed in (0, 0, 1))
    first, again, other = (jax.device_get(state.params) for state in states)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["head"]["kernel"]
    assert not np.array_equal(kernel, other["head"]["kernel"])
