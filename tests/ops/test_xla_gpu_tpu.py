"""The forms for GPUs and TPUs, run on a CPU, against the plain operations."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import export
from jax import numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from test_ops import EXAMPLES, TOLERANCE, dtypes, normal, pads, shapes, steps, values_and_gradients

from resnet_jax import ops
from resnet_jax.ops import plain, xla_gpu_tpu

PADDING = ((1, 1), (1, 1))
WINDOW = ((3, 3), (2, 2), PADDING)
STRIDES = (2, 2)


def near(found, expected, tolerance=1e-5):
    """Relative to the largest value of each array, as a sum of many terms may be near zero."""
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-3))


@EXAMPLES
@given(
    shape=shapes,
    channels=st.tuples(st.integers(1, 4), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=steps,
    padding=st.tuples(pads, pads),
)
def test_bias_as_a_kernel(shape, channels, window, strides, padding):
    inputs, outputs = channels
    x = normal(1, *shape, inputs)
    parameters = normal(2, *window, inputs, outputs), normal(3, outputs)
    assume(xla_gpu_tpu.takes_ones(strides, padding, 1, x.astype(jnp.bfloat16), parameters[0]))

    def ours(*operands):
        return values_and_gradients(partial(xla_gpu_tpu.conv_with_ones, strides, padding), *operands)

    def theirs(*operands):
        return values_and_gradients(partial(plain.conv, strides, padding, 1), *operands)

    near(jax.jit(ours)(x, *parameters), jax.jit(theirs)(x, *parameters))


@pytest.mark.parametrize(
    ("dtype", "size", "inputs", "side", "strides", "padding", "takes"),
    [
        ("bfloat16", 24, 1, 7, (2, 2), (3, 3), True),
        ("bfloat16", 24, 3, 3, (1, 1), (1, 1), True),
        ("bfloat16", 24, 16, 7, (2, 2), (3, 3), False),  # a layer of the network
        ("float32", 24, 1, 7, (2, 2), (3, 3), False),
        ("bfloat16", 24, 1, 2, (1, 1), (2, 0), False),  # the first window lies in the padding
        ("bfloat16", 24, 1, 2, (1, 1), (0, 2), False),  # the last one does
    ],
)
def test_which_convolutions_take_the_bias_as_a_kernel(dtype, size, inputs, side, strides, padding, takes):
    x, kernel = jnp.ones((2, size, size, inputs), dtype), jnp.ones((side, side, inputs, 4))
    assert xla_gpu_tpu.takes_ones(strides, (padding, padding), 1, x, kernel) == takes


def stem(form, x, kernel, bias, scale, offset, axis_name=None):
    y = form.conv(STRIDES, ((3, 3), (3, 3)), 1, x, kernel, bias)
    return form.batch_norm_relu_max_pool(1e-5, axis_name, *WINDOW, y, scale, offset)


def operands(images=4, channels=8):
    """The scales have both signs: a negative one makes the max-pool of the output the min-pool of the input."""
    shapes = ((images, 16, 24, 1), (7, 7, 1, channels), (channels,), (channels,), (channels,))
    return tuple(normal(i, *shape) for i, shape in enumerate(shapes))


def without_bias(results):
    """Without the gradient of the convolution's bias, which is zero but for rounding."""
    outputs, (dx, dkernel, _, dscale, doffset) = results
    return outputs, (dx, dkernel, dscale, doffset)


def test_stem():
    found, expected = (
        jax.jit(partial(values_and_gradients, partial(stem, form)))(*operands()) for form in (xla_gpu_tpu, plain)
    )
    assert min(operands()[3]) < 0 < max(operands()[3])
    near(without_bias(found), without_bias(expected), 2e-5)


def test_stem_in_bfloat16_is_as_near_to_float32_as_the_plain_form():
    """Rounding can move a value across the edge of a ReLU, or make another pixel the largest of a window."""
    x, *parameters = operands(64)
    run = {form: jax.jit(partial(values_and_gradients, partial(stem, form))) for form in (plain, xla_gpu_tpu)}
    x = x.astype(jnp.bfloat16)
    exact = without_bias(run[plain](x.astype(jnp.float32), *parameters))
    found, theirs = (without_bias(run[form](x, *parameters)) for form in (xla_gpu_tpu, plain))

    def error(results):
        return [
            float(jnp.linalg.norm((a - b).astype(jnp.float32)) / jnp.linalg.norm(b))
            for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(exact), strict=True)
        ]

    for ours, others in zip(error(found), error(theirs), strict=True):
        assert ours <= 1.2 * others + 1e-3


@EXAMPLES
@given(shape=shapes, channels=st.integers(2, 9), strides=steps, zero=st.booleans())
def test_norm_and_pool(shape, channels, strides, zero):
    """With a scale of zero all pixels of a window are equal after the norm, and each may get the gradient of scale."""
    x = 3 * normal(1, *shape, channels) + 2
    parameters = normal(2, channels).at[0].multiply(1 - zero), normal(3, channels)

    def run(form, *operands):
        (y, mean, var), (dx, dscale, dbias) = values_and_gradients(
            lambda *a: form.batch_norm_relu_max_pool(1e-5, None, (3, 3), strides, PADDING, *a), *operands
        )
        return y, mean, var, dx, dscale[int(zero) :], dbias

    found, expected = (jax.jit(partial(run, form))(x, *parameters) for form in (xla_gpu_tpu, plain))
    near(found, expected, 2e-5)


@EXAMPLES
@given(shape=shapes, channels=st.integers(1, 9), dtype=dtypes)
def test_norm_and_relu(shape, channels, dtype):
    x = (3 * normal(1, *shape, channels) + 2).astype(dtype)
    parameters = normal(2, channels), normal(3, channels)

    def run(form, *operands):
        return values_and_gradients(lambda *a: form.batch_norm(1e-5, None, True, *a, None), *operands)

    found = jax.jit(partial(run, xla_gpu_tpu))(x, *parameters)
    near(found, jax.jit(partial(run, plain))(x.astype(jnp.float32), *parameters), TOLERANCE[dtype])


def test_not_a_number_is_seen():
    x = jnp.zeros((1, 4, 4, 2)).at[0, 1, 1, 0].set(jnp.nan)
    outputs = xla_gpu_tpu.batch_norm_relu_max_pool(1e-5, None, *WINDOW, x, jnp.ones(2), jnp.ones(2))
    assert jnp.isnan(jax.tree.leaves(outputs)[0]).any()


@pytest.mark.parametrize("transform", ["remat", "vmap"])
def test_transforms(transform):
    run = partial(stem, xla_gpu_tpu)
    expected = jax.jit(partial(values_and_gradients, run))(*operands())
    if transform == "remat":
        found = jax.jit(partial(values_and_gradients, jax.checkpoint(run)))(*operands())
    else:
        stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), operands())
        found = jax.jit(jax.vmap(partial(values_and_gradients, run)))(*stacked)
        found = jax.tree.map(lambda a: a[0], found)
    near(without_bias(found), without_bias(expected), 2e-5)


@pytest.mark.parametrize("mapped", ["pmap", "shard_map"])
def test_statistics_over_8_devices_are_those_of_the_whole_batch(mapped, monkeypatch):
    """The gradients of 8 devices add up to those of one device on the whole batch."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    x, *parameters = operands(16)

    def loss(parameters, x, axis_name):
        kernel, bias, scale, offset = parameters
        y = ops.conv(x, kernel, bias, strides=STRIDES, padding=((3, 3), (3, 3)))
        y, *statistics = ops.batch_norm_relu_max_pool(y, scale, offset, axis_name=axis_name)
        return jnp.sum(y**2), statistics

    gradient = jax.grad(loss, has_aux=True)
    expected = jax.jit(partial(gradient, axis_name=None))(parameters, x)
    many = partial(gradient, axis_name="b")
    if mapped == "pmap":
        grads, statistics = jax.pmap(many, "b", in_axes=(None, 0))(parameters, x.reshape(8, 2, *x.shape[1:]))
        found = jax.tree.map(lambda a: a.sum(0), grads), jax.tree.map(lambda a: a[0], statistics)
    else:
        whole, split = PartitionSpec(), PartitionSpec("b")
        found = jax.jit(jax.shard_map(many, mesh=Mesh(jax.devices(), "b"), in_specs=(whole, split), out_specs=whole))(
            parameters, x
        )
    near([found[0][0], found[0][2:], found[1]], [expected[0][0], expected[0][2:], expected[1]])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_program_pools_before_it_normalises(platform):
    """The max-pool's operand is as large as the image; the square root of the variance comes after it."""
    text = export.export(jax.jit(ops.batch_norm_relu_max_pool), platforms=[platform])(
        jnp.ones((2, 8, 8, 3)), jnp.ones(3), jnp.ones(3)
    ).mlir_module()
    assert 0 < text.index("stablehlo.reduce_window") < text.index("stablehlo.rsqrt")
