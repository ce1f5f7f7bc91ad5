"""Forward mode and second derivatives of the plain operations, against finite differences in float64."""

from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from test_ops import WAYS, normal

from resnet_jax import create_model, ops

EPSILON = 1e-5


@pytest.fixture
def float64():
    if hasattr(jax, "enable_x64"):
        with jax.enable_x64(True):
            yield
    else:  # jax 0.7
        from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

        with enable_x64():
            yield


def network(x, kernel, bias, scale, offset):
    """Every operation once. Its second derivatives are not zero, as it ends in a square."""
    y, *_ = ops.batch_norm_relu_max_pool(x, scale, offset)
    z = ops.conv(y, kernel, bias, padding=((1, 1), (1, 1)))
    z, *_ = ops.batch_norm(z, scale, offset, relu=True, residual=y)
    return jnp.sum(ops.max_pool(z, (2, 2), (1, 1), ((0, 0), (0, 0))) ** 2) / 10


def operands(dtype):
    shapes = ((2, 7, 7, 3), (3, 3, 3, 3), (3,), (3,), (3,))
    return [np.asarray(normal(i, *shape), dtype) for i, shape in enumerate(shapes)]


def step(point, direction, size):
    return [p + size * d for p, d in zip(point, direction, strict=True)]


def test_derivatives_are_finite_differences(float64):
    """float64 takes the plain operations by itself."""
    point, direction = operands(np.float64), [normal(9 + i, *p.shape) for i, p in enumerate(operands(np.float64))]
    direction = [np.asarray(d, np.float64) for d in direction]
    value = jax.jit(lambda *p: network(*p))
    assert value(*point).dtype == jnp.float64
    gradient = jax.jit(jax.grad(network, tuple(range(5))))
    ahead, behind = step(point, direction, EPSILON), step(point, direction, -EPSILON)
    _, slope = jax.jvp(value, tuple(point), tuple(direction))
    np.testing.assert_allclose(slope, (value(*ahead) - value(*behind)) / (2 * EPSILON), rtol=1e-6)
    # forward over reverse, and reverse over reverse
    _, product = jax.jvp(gradient, tuple(point), tuple(direction))
    along = jax.grad(lambda *p: sum(jnp.vdot(g, d) for g, d in zip(gradient(*p), direction, strict=True)), range(5))
    differences = [(a - b) / (2 * EPSILON) for a, b in zip(gradient(*ahead), gradient(*behind), strict=True)]
    for i, (found, twice, difference) in enumerate(zip(product, along(*point), differences, strict=True)):
        assert np.abs(difference).max() > 0.1 or i == 2  # batch norm makes the bias before it useless
        atol = 1e-6 * max(1, np.abs(difference).max())
        np.testing.assert_allclose(found, difference, rtol=0, atol=atol)
        np.testing.assert_allclose(twice, difference, rtol=0, atol=atol)


def test_plain_is_chosen_by_name():
    """In float32 the Hessian-vector product needs "plain"; it is symmetric."""
    point = operands(np.float32)
    u, v = ([normal(seed + i, *p.shape) for i, p in enumerate(point)] for seed in (20, 30))
    gradient = jax.grad(network, tuple(range(5)))
    with ops.cpu_kernels("xla"), pytest.raises(TypeError, match=r"forward-mode.*custom_vjp"):
        jax.jvp(gradient, tuple(point), tuple(u))
    with ops.cpu_kernels("plain"):
        assert not ops.native_chosen()
        assert "resnet_jax" not in jax.jit(network).lower(*point).as_text()
        products = [jax.jvp(gradient, tuple(point), tuple(direction))[1] for direction in (u, v)]
    one, other = (
        sum(float(jnp.vdot(a, b)) for a, b in zip(left, right, strict=True))
        for left, right in ((products[0], v), (products[1], u))
    )
    np.testing.assert_allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_plain_values_and_gradients_are_those_of_the_others(way):
    point, gradient = operands(np.float32), jax.value_and_grad(network, tuple(range(5)))
    with ops.cpu_kernels(way):
        expected = jax.jit(lambda *p: gradient(*p))(*point)
    with ops.cpu_kernels("plain"):
        found = jax.jit(lambda *p: gradient(*p))(*point)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1, np.abs(b).max()))


def test_a_models_hessian_vector_product(float64):
    """A whole network in float64, in training mode, against the difference of two gradients."""
    x = np.asarray(normal(1, 2, 8, 8, 3), np.float64)
    model = create_model("resnet20", 3, dtype=jnp.float64, width=0.5)
    held = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.init(jax.random.key(0), x))
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), held["params"])

    def loss(params):
        logits, _ = model.apply({**held, "params": params}, x, train=True, mutable=["batch_stats"])
        assert logits.dtype == jnp.float64
        return jnp.sum(logits**2)

    gradient = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})
    product = jax.jit(partial(jax.jvp, jax.grad(loss)), compiler_options={"xla_backend_optimization_level": 0})
    _, found = product((held["params"],), (direction,))
    near = [jax.tree.map(lambda p, d, s=s: p + s * d, held["params"], direction) for s in (1e-7, -1e-7)]
    difference = jax.tree.map(lambda a, b: (a - b) / 2e-7, *map(gradient, near))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(difference), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(b).max())
