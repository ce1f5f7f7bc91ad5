"""Schedules and optimizers against their formulas; SGD by hand is in test_step.py."""

from collections.abc import Iterable

import jax
import numpy as np
import optax
import optax.contrib
import pytest
from jax import numpy as jnp
from made import NETS

from resnet_jax.models import create_model
from resnet_jax.runs import OptimConfig
from resnet_jax.runs.build import make_optimizer, make_schedule
from resnet_jax.training.optim import is_kernel, near_orthogonal
from resnet_jax.training.state import create_state

EPOCHS, STEPS = 5, 8  # 40 steps


def rates(config: OptimConfig, steps: Iterable[int] = range(EPOCHS * STEPS)) -> np.ndarray:
    schedule = make_schedule(config, EPOCHS, STEPS)
    return np.array([schedule(step) for step in steps])


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


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_linear_falls_to_zero_at_the_last_step(warmup):
    steps, first = np.arange(40), int(warmup * STEPS)
    expected = np.where(steps < first, 0.3 * steps / max(first, 1), 0.3 * (1 - (steps - first) / (40 - first)))
    np.testing.assert_allclose(rates(OptimConfig(0.3, "linear", warmup)), expected, 1e-5, 1e-7)
    assert rates(OptimConfig(0.3, "linear", warmup), [40]) == 0


@pytest.mark.parametrize(("warmup", "top"), [(0.0, 12), (2.5, 20)])
def test_one_cycle_at_its_landmarks(warmup, top):
    """A 25th of the peak, the peak, the middle of each slope, and a 250000th: 12 of 40 steps rise, or 2.5 epochs."""
    config = OptimConfig(0.3, "one_cycle", warmup)
    landmarks = {0: 0.3 / 25, top // 2: 0.3 * (1 + 1 / 25) / 2, top: 0.3, (top + 40) // 2: 0.15, 40: 0.3 / 25e4}
    np.testing.assert_allclose(rates(config, landmarks), list(landmarks.values()), 1e-5)
    reference = optax.cosine_onecycle_schedule(40, 0.3, top / 40)
    np.testing.assert_allclose(rates(config), np.array([reference(i) for i in range(40)]), 1e-4, 1e-6)


def test_one_cycle_in_a_run_of_one_step():
    assert np.isfinite(make_schedule(OptimConfig(0.3, "one_cycle"), 1, 1)(0))


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


def one_update(config: OptimConfig, grads):
    """What the first update of a learning rate of 0.1 adds to params of 1, by name of the path."""
    params = small_params()
    optimizer = make_optimizer(config, lambda step: 0.1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return jax.tree.leaves_with_path(updates)


def test_adamw_decays_kernels_by_the_rate_times_the_decay():
    """The first step of Adam is the learning rate times the sign of the gradient, whatever its size."""
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3.0), small_params())
    for path, update in one_update(OptimConfig(0.1, optimizer="adamw", weight_decay=0.2), grads):
        np.testing.assert_allclose(update, -0.12 if path[-1].key == "kernel" else -0.1, 1e-4)


def test_muon_orthogonalises_kernels_of_convolutions():
    """Against the singular vectors. Muon's five iterations bring singular values near 1, within 0.5 (its author's own
    figure), so the update has a root mean square near 0.2, whatever the gradient's size and the kernel's shape."""
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: 1e-3 * rng.normal(size=leaf.shape).astype(np.float32), small_params())
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(grads)}
    config = OptimConfig(0.1, optimizer="muon", momentum=0.95, nesterov=True)
    shapes = set()
    for path, update in one_update(config, grads):
        if update.ndim != 4:  # the head, biases and scales: AdamW
            np.testing.assert_allclose(np.abs(update), 0.1, 1e-2)
            continue
        rows, columns = np.prod(update.shape[:3]), update.shape[3]
        shapes.add(rows > columns)
        left, _, right = np.linalg.svd(flat[jax.tree_util.keystr(path)].reshape(rows, columns), full_matrices=False)
        scaled = np.asarray(update).reshape(rows, columns) / (-0.1 * 0.2 * np.sqrt(max(rows, columns)))
        values = np.diag(left.T @ scaled @ right.T)
        assert np.all((values > 0.5) & (values < 1.5))
        np.testing.assert_allclose(scaled, left @ np.diag(values) @ right, atol=1e-3)
        assert 0.1 < np.sqrt(np.mean(np.square(update))) / 0.1 < 0.3
    assert shapes == {True, False}  # kernels that are higher than wide, and the stem's


@pytest.mark.parametrize("shape", [(90, 24), (24, 24), (9, 64), (1, 5)])
@pytest.mark.parametrize("exponent", [0, -2, -8])
def test_the_five_steps_are_those_of_optax(shape, exponent):
    """Of a matrix whose singular values fall to 10^exponent, against the polynomial of each value in float64."""
    rng = np.random.default_rng(0)
    size = min(shape)
    left, right = (np.linalg.qr(rng.normal(size=(axis, size)))[0] for axis in shape)
    values = np.logspace(0, exponent, size)
    matrix = ((left * values) @ right.T).astype(np.float32)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    np.testing.assert_allclose(near_orthogonal(jnp.asarray(matrix)), (left * values) @ right.T, atol=1e-3)
    by_optax = optax.contrib.muon(1.0, beta=0.0, nesterov=False)
    found, _ = by_optax.update(matrix, by_optax.init(matrix), matrix)
    scale = -(max(1, shape[1] / shape[0]) ** 0.5)
    np.testing.assert_allclose(near_orthogonal(jnp.asarray(matrix)), found / scale, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    """Of a matrix of almost rank 1, where an error of the Gram matrix would grow by 12 in each step."""
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(np.outer(rng.normal(size=288), rng.normal(size=64)) + 1e-4 * rng.normal(size=(288, 64)), dtype)
    found = near_orthogonal(matrix)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.astype(np.float32), near_orthogonal(matrix.astype(np.float32)), rtol=0.01, atol=1e-3
    )


def test_a_matrix_of_zeros_stays_zero():
    np.testing.assert_array_equal(near_orthogonal(jnp.zeros((6, 3))), np.zeros((6, 3)))


def test_muon_decays_kernels_by_the_rate_times_the_decay():
    """A gradient of 0 has the update 0."""
    grads = jax.tree.map(jnp.zeros_like, small_params())
    for path, update in one_update(OptimConfig(0.1, optimizer="muon", weight_decay=0.2), grads):
        np.testing.assert_allclose(update, -0.02 if path[-1].key == "kernel" else 0, 1e-4)


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_clipping_is_of_the_norm_over_all_parameters(norm):
    """And before the weight decay is added."""
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3.0), small_params())
    held = 3 * np.sqrt(sum(leaf.size for leaf in jax.tree.leaves(grads)))
    expected = 3 * min(norm / held, 1)
    for path, update in one_update(OptimConfig(0.1, clip_norm=norm, weight_decay=0.2), grads):
        np.testing.assert_allclose(update, -0.1 * (expected + (0.2 if path[-1].key == "kernel" else 0)), 1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_biases_have_a_learning_rate_of_their_own(optimizer):
    """Of convolutions and batch norms, not of the head; kernels and scales keep theirs."""
    grads = jax.tree.map(jnp.ones_like, small_params())
    counts = {1: 0, 64: 0}
    for path, update in one_update(OptimConfig(0.1, optimizer=optimizer, bias_lr_factor=64.0), grads):
        if update.ndim == 4 and optimizer == "muon":
            continue
        factor = 64 if path[-1].key == "bias" and path[0].key != "head" else 1
        counts[factor] += 1
        np.testing.assert_allclose(update, -0.1 * factor, 1e-4)
    assert min(counts.values()) > 3


@pytest.mark.parametrize("changes", [{"clip_norm": 1.0}, {"bias_lr_factor": 2.0}])
def test_the_form_of_the_state_is_the_same(changes):
    """So that --override can change these options in a run."""
    states = [
        make_optimizer(OptimConfig(momentum=0.9, weight_decay=0.1, **more), lambda step: 0.1).init(small_params())
        for more in ({}, changes)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
