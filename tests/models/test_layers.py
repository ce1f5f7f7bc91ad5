"""The layers against NumPy, against Flax's own and, for what is random, against PyTorch's draws."""

import dataclasses

import jax
import numpy as np
import pytest
import seeded
from flax import linen as nn
from flax_side import RUN_ONCE, apply
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import create_model
from resnet_jax.models.layers import BatchNorm, Conv, Dense
from resnet_jax.models.registry import get_arch

FROZEN = seeded.frozen("torch_nets")


def draws(case):
    """Kernels and biases of as many keys as PyTorch drew from: (draws, ...)."""
    size = (case.size, case.size)
    if case.size:
        layer, x = Conv(case.features, size, groups=case.groups), jnp.zeros((1, 8, 8, case.channels))
    else:
        layer, x = Dense(case.features), jnp.zeros((1, case.channels))
    keys = jax.random.split(jax.random.key(0), case.draws)
    init = jax.jit(jax.vmap(lambda key: layer.init(key, x)), compiler_options=RUN_ONCE)
    params = init(keys)["params"]
    return params["kernel"], params["bias"]


@pytest.mark.parametrize("case", [*seeded.INITS, seeded.DENSE_INIT], ids=lambda case: case.name)
def test_initialisation_is_pytorchs(case):
    """Largest values and deviations of 100 draws, against torch's own bias and d2l.init_cnn's kernel."""
    kernel, bias = draws(case)
    drawn = [np.abs(kernel).max(), np.abs(bias).max(), kernel.std(), bias.std()]
    np.testing.assert_allclose(drawn, FROZEN[f"init/{case.name}"], rtol=0.04)
    area = case.size**2 or 1
    fan_in, fan_out = area * case.channels // case.groups, area * case.features
    assert np.abs(kernel).max() <= np.sqrt(6 / (fan_in + fan_out))
    assert np.abs(bias).max() <= 1 / np.sqrt(fan_in)
    for values in (kernel, bias):  # uniform: a tenth of the values in each tenth of the range
        bound = np.abs(values).max()
        count, _ = np.histogram(values, 10, (-bound, bound))
        np.testing.assert_allclose(count / values.size, 0.1, atol=0.03)
    assert len(np.unique(kernel[:, 0, ..., 0])) > case.draws / 2  # the keys differ


@pytest.mark.parametrize("name", thorough_except(("resnet18", "resnext18"), "resnext18"))
def test_every_leaf_of_a_network_starts_as_the_seeds(name):
    """Kernels fill their own Xavier bound, biases their 1 / sqrt(fan_in); gamma 1, beta 0, mean 0, variance 1."""
    model = create_model(dataclasses.replace(get_arch(name), stages=((1, 64), (2, 32))), stem="small")
    init = jax.jit(model.init, compiler_options=RUN_ONCE)
    held = jax.device_get(init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    params = dict(seeded.leaves(held["params"]))
    seen = set()
    for path, leaf in params.items():
        module, kind = path.rsplit("/", 1)
        if f"{module}/kernel" in params:
            kernel = params[f"{module}/kernel"]
            area = np.prod(kernel.shape[:-2], dtype=int)
            fan_in, fan_out = area * kernel.shape[-2], area * kernel.shape[-1]
            bound = np.sqrt(6 / (fan_in + fan_out)) if kind == "kernel" else 1 / np.sqrt(fan_in)
            assert 0.6 * bound < np.abs(leaf).max() <= bound, path
            assert leaf.tobytes() not in seen, f"{path} is another leaf's copy"
            seen.add(leaf.tobytes())
        else:
            np.testing.assert_array_equal(leaf, {"scale": 1, "bias": 0}[kind], err_msg=path)
    for path, leaf in seeded.leaves(held["batch_stats"]):
        np.testing.assert_array_equal(leaf, {"mean": 0, "var": 1}[path.rsplit("/", 1)[1]], err_msg=path)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("size", "strides", "padding", "groups"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 1, 4), (7, 2, 3, 1), (1, 2, 0, 1), (1, 1, 0, 2), (3, 1, 0, 8)],
)
def test_conv_is_flaxs(size, strides, padding, groups, use_bias):
    x = seeded.normal("x", (2, 9, 10, 8))
    ours = Conv(16, (size, size), strides, padding, groups, use_bias)
    flaxs = nn.Conv(16, (size, size), strides, padding=padding, feature_group_count=groups, use_bias=use_bias)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x)
    assert shapes == jax.eval_shape(flaxs.init, jax.random.key(0), x)
    held = {"params": seeded.filled(shapes["params"])}
    np.testing.assert_allclose(apply(ours, held, x), apply(flaxs, held, x), rtol=0, atol=1e-5)


def test_conv_by_hand():
    """Cross-correlation, not convolution, and zeros outside: the four corners of a 2x2 image under a 3x3 kernel."""
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32).reshape(1, 2, 2, 1)
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    held = {"params": {"kernel": kernel, "bias": np.array([100.0], np.float32)}}
    y = apply(Conv(1, (3, 3), padding=1), held, x)
    by_hand = [4 + 2 * 5 + 3 * 7 + 4 * 8, 3 + 2 * 4 + 3 * 6 + 4 * 7, 1 + 2 * 2 + 3 * 4 + 4 * 5, 0 + 2 + 3 * 3 + 4 * 4]
    np.testing.assert_array_equal(np.ravel(y), np.array(by_hand, np.float32) + 100)


def batch_norm_by_numpy(x, leaf, mean, var):
    """In float64."""
    return (x - mean) / np.sqrt(var + 1e-5) * leaf["scale"] + leaf["bias"]


STATISTICS_SHAPE = (3, 5, 4, 6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_is_numpys(train, add, relu):
    x = seeded.normal("x", STATISTICS_SHAPE) * 2 + 3
    residual = seeded.normal("residual", STATISTICS_SHAPE) if add else None
    layer = BatchNorm(use_running_average=not train, relu=relu)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    held = {collection: seeded.filled(tree, "bn/") for collection, tree in shapes.items()}
    y, new = apply(layer, held, x, residual, mutable=["batch_stats"])
    before, after = held["batch_stats"], new["batch_stats"]
    x64 = x.astype(np.float64)
    mean, var = x64.mean((0, 1, 2)), x64.var((0, 1, 2))  # the biased variance
    used = (mean, var) if train else (before["mean"], before["var"])
    wanted = batch_norm_by_numpy(x64, held["params"], *used) + (0 if residual is None else residual)
    np.testing.assert_allclose(y, np.maximum(wanted, 0) if relu else wanted, rtol=0, atol=1e-5)
    for name, value in (("mean", mean), ("var", var)):
        kept = 0.9 * before[name] + 0.1 * value if train else before[name]
        np.testing.assert_allclose(after[name], kept, rtol=0, atol=1e-6)


def test_batch_norm_is_flaxs():
    """With momentum and epsilon of its own, gradients too."""
    x, noise = seeded.normal("x", STATISTICS_SHAPE), seeded.normal("noise", STATISTICS_SHAPE)
    ours = BatchNorm(use_running_average=False, momentum=0.7, epsilon=1e-2)
    flaxs = nn.BatchNorm(use_running_average=False, momentum=0.7, epsilon=1e-2)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x)
    assert shapes == jax.eval_shape(flaxs.init, jax.random.key(0), x)
    held = {collection: seeded.filled(tree, "bn/") for collection, tree in shapes.items()}

    def answer(layer):
        def loss(params, x):
            y, new = apply(layer, {**held, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(y * noise), (y, new)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(held["params"], x)

    mine, theirs = answer(ours), answer(flaxs)
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("offset", [1, 10, 100])
def test_batch_norm_of_a_channel_far_from_zero(offset):
    """A mean of many deviations costs digits: 1.6e-6 * (mean / deviation)**2 is seen, 5e-6 allowed."""
    x = seeded.normal("x", (8, 6, 6, 4)) + np.float32(offset)
    layer = BatchNorm(use_running_average=False)
    y, _ = layer.init_with_output(jax.random.key(0), x)
    x64 = x.astype(np.float64)
    wanted = (x64 - x64.mean((0, 1, 2))) / np.sqrt(x64.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=5e-6 * (1 + offset**2))


def test_batch_norm_of_a_constant_channel_is_its_bias():
    """The variance is 0, or by rounding below it: no NaN, neither in the value nor in the gradient."""
    x = np.full((8, 6, 6, 3), 1.1, np.float32) * np.array([0, 1, 10], np.float32)
    layer = BatchNorm(use_running_average=False)
    held = {"params": {"scale": np.ones(3, np.float32), "bias": np.full(3, 0.25, np.float32)}}
    held["batch_stats"] = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}

    def run(x):
        return apply(layer, held, x, mutable=["batch_stats"])[0]

    np.testing.assert_allclose(run(x), 0.25, rtol=0, atol=0.01)
    gradient = jax.grad(lambda x: run(x).sum())(x)  # a constant added to a channel changes nothing
    np.testing.assert_allclose(gradient, 0, rtol=0, atol=0.01)


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_in_bfloat16_normalises_in_float32(train):
    """Only its output is rounded to bfloat16: float32's answer, rounded once."""
    x = (seeded.normal("x", STATISTICS_SHAPE) * 2 + 3).astype(jnp.bfloat16)
    low, full = (BatchNorm(use_running_average=not train, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    held = low.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(held)} == {np.dtype(np.float32)}
    (y, stats), (y32, stats32) = (apply(layer, held, x, mutable=["batch_stats"]) for layer in (low, full))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, y32.astype(jnp.bfloat16))
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(stats32), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dense_by_numpy_and_in_float32():
    x = seeded.normal("x", (3, 20))
    held = {"params": seeded.filled(jax.eval_shape(Dense(7).init, jax.random.key(0), x)["params"], "head/")}
    wanted = x.astype(np.float64) @ held["params"]["kernel"] + held["params"]["bias"]
    np.testing.assert_allclose(apply(Dense(7), held, x), wanted, rtol=0, atol=1e-5)
    low = x.astype(jnp.bfloat16)
    assert apply(Dense(7), held, low).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_conv_computes_in_its_dtype(dtype):
    layer, x = Conv(4, (3, 3), padding=1, dtype=dtype), seeded.normal("x", (1, 5, 5, 2))
    y, held = layer.init_with_output(jax.random.key(0), x)
    assert y.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(held)} == {np.dtype(np.float32)}
