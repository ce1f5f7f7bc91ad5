"""Each operation and gradient, both ways on the CPU, against XLA's own in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thorough import thorough_except

from resnet_jax import ops
from resnet_jax.ops import plain, xla_cpu

WAYS = [
    "xla",
    pytest.param("onednn", marks=pytest.mark.skipif(not ops.native_available(), reason="not built")),
]
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
EXAMPLES = settings(max_examples=5, deadline=None, derandomize=True)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def values_and_gradients(function, *operands):
    """Every output of function, and the gradient of a weighted sum of the first one."""

    def loss(*operands):
        outputs = jax.tree.leaves(function(*operands))
        weights = normal(99, *outputs[0].shape)
        return jnp.sum(outputs[0].astype(jnp.float32) * weights), outputs

    (_, outputs), gradients = jax.value_and_grad(loss, tuple(range(len(operands))), has_aux=True)(*operands)
    return outputs, list(gradients)


def agree(way, dtype, function, reference, images, parameters=()):
    """function in dtype must agree with reference in float32, on operands that dtype can hold."""
    images = [image.astype(dtype) for image in images]
    with ops.cpu_kernels(way):
        found = jax.jit(partial(values_and_gradients, function))(*images, *parameters)
    exact = [image.astype(jnp.float32) for image in images]
    expected = jax.jit(partial(values_and_gradients, reference))(*exact, *parameters)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert got.shape == want.shape
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        # Relative to the array's largest value, as a sum of many terms may be near zero.
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * max(np.abs(want).max(), 1e-3))


shapes = st.tuples(st.integers(1, 4), st.integers(4, 13), st.integers(4, 13))
pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
steps = st.tuples(st.integers(1, 3), st.integers(1, 3))
dtypes = st.sampled_from(["float32", "bfloat16"])


@pytest.mark.parametrize("way", WAYS)
@EXAMPLES
@given(
    shape=shapes,
    groups=st.sampled_from([1, 2, 4]),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=steps,
    padding=st.tuples(pads, pads),
    bias=st.booleans(),
    dtype=dtypes,
)
def test_conv(way, shape, groups, channels, window, strides, padding, bias, dtype):
    inputs, outputs = channels
    how = {"strides": strides, "padding": padding, "groups": groups}
    parameters = [normal(2, *window, inputs, outputs * groups)] + [normal(3, outputs * groups)] * bias
    agree(
        way,
        dtype,
        lambda x, w, b=None: ops.conv(x, w, b, **how),
        lambda x, w, b=None: plain.conv(strides, padding, groups, x, w, b),
        [normal(1, *shape, inputs * groups)],
        parameters,
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", thorough_except(TOLERANCE, "float32"))
@pytest.mark.parametrize(
    ("size", "inputs", "outputs", "window", "step", "groups"),
    [
        (24, 64, 64, 3, 1, 1),
        (12, 32, 64, 3, 2, 1),
        (12, 32, 64, 1, 2, 1),
        (24, 1, 64, 7, 2, 1),
        (3, 96, 96, 3, 1, 1),
        (1, 96, 96, 3, 1, 1),
        (2, 96, 96, 3, 2, 1),
        (2, 32, 48, 3, 1, 1),
        (12, 64, 64, 3, 1, 4),
    ],
)
def test_conv_of_the_networks(way, dtype, size, inputs, outputs, window, step, groups):
    """The shapes that take oneDNN's and our fast paths."""
    padding = ((window // 2, window // 2),) * 2
    agree(
        way,
        dtype,
        lambda x, w, b: ops.conv(x, w, b, strides=(step, step), padding=padding, groups=groups),
        lambda x, w, b: plain.conv((step, step), padding, groups, x, w, b),
        [normal(1, 4, size, size, inputs)],
        [normal(2, window, window, inputs // groups, outputs), normal(3, outputs)],
    )


@pytest.mark.parametrize(
    ("shape", "channels", "padding"),
    [  # less than one tile, whole tiles, and tiles that the image ends inside, with each kind of padding
        ((1, 3, 3), (1, 1), ((0, 0), (0, 0))),
        ((2, 8, 8), (3, 5), ((1, 1), (1, 1))),
        ((4, 13, 6), (9, 2), ((0, 2), (1, 0))),
        ((3, 5, 11), (4, 9), ((2, 1), (0, 1))),
    ],
)
def test_winograd_kernel_gradient(shape, channels, padding):
    x, kernel = normal(1, *shape, channels[0]), normal(2, 3, 3, *channels)
    y, gradient = jax.vjp(lambda kernel: plain.conv((1, 1), padding, 1, x, kernel, None), kernel)
    dy = normal(3, *y.shape)
    (want,), got = gradient(dy), jax.jit(xla_cpu.winograd_kernel_gradient, static_argnums=0)(padding, x, dy)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("shape", "features", "chosen"),
    [((128, 24, 24, 64), 64, True), ((128, 24, 24, 32), 64, False), ((128, 4, 4, 64), 64, False)],
)
def test_where_winograd_is_chosen(shape, features, chosen):
    """36 products, one for each place of a transformed tile, and of no other size."""

    def loss(kernel, x):
        return ops.conv(x, kernel, padding=((1, 1), (1, 1))).sum()

    x, kernel = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((3, 3, shape[3], features), jnp.float32)
    with ops.cpu_kernels("xla"):
        text = jax.jit(jax.grad(loss)).lower(kernel, x).as_text()
    assert (text.count("stablehlo.dot_general") >= 36) == chosen


@pytest.mark.parametrize("way", WAYS)
@EXAMPLES
@given(
    shape=shapes,
    channels=st.integers(1, 33),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=steps,
    padding=st.tuples(pads, pads),
    dtype=dtypes,
)
def test_max_pool(way, shape, channels, window, strides, padding, dtype):
    # A window that lies in the padding alone has no largest value.
    padding = tuple(
        (min(low, side - 1), min(high, side - 1)) for side, (low, high) in zip(window, padding, strict=True)
    )
    agree(
        way,
        dtype,
        lambda x: ops.max_pool(x, window, strides, padding),
        lambda x: plain.max_pool(window, strides, padding, x),
        [normal(1, *shape, channels)],
    )


@pytest.mark.parametrize("way", WAYS)
def test_max_pool_gives_ties_to_the_first(way):
    with ops.cpu_kernels(way):
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(ops.max_pool(x))))(jnp.ones((1, 4, 4, 1)))
    expected = jax.grad(lambda x: jnp.sum(plain.max_pool((3, 3), (2, 2), ((1, 1), (1, 1)), x)))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("way", WAYS)
def test_not_a_number_is_seen(way):
    x = jnp.zeros((1, 4, 4, 2)).at[0, 1, 1, 0].set(jnp.nan)
    one = jnp.ones(2)
    with ops.cpu_kernels(way):
        assert jnp.isnan(jax.jit(ops.max_pool)(x)[0, 0, 0, 0])
        assert jnp.isnan(jax.jit(partial(ops.batch_norm, relu=True))(x, one, one)[0]).any()
        assert jnp.isnan(jax.jit(ops.batch_norm_relu_max_pool)(x, one, one)[0]).any()


@pytest.mark.parametrize("way", WAYS)
@EXAMPLES
@given(shape=shapes, channels=st.integers(1, 33), relu=st.booleans(), residual=st.booleans(), dtype=dtypes)
def test_batch_norm(way, shape, channels, relu, residual, dtype):
    images = [3 * normal(1, *shape, channels) + 2] + [normal(4, *shape, channels)] * residual
    n = len(images)

    def ours(*a):
        return ops.batch_norm(a[0], *a[n:], relu=relu, residual=a[1] if residual else None)

    def reference(*a):
        scale, bias = a[n:]
        return plain.batch_norm(1e-5, None, relu, a[0], scale, bias, a[1] if residual else None)

    agree(way, dtype, ours, reference, images, [normal(2, channels), normal(3, channels)])


@pytest.mark.parametrize("way", WAYS)
@EXAMPLES
@given(shape=shapes, channels=st.integers(1, 33), strides=steps, dtype=dtypes)
def test_batch_norm_relu_max_pool(way, shape, channels, strides, dtype):
    window, padding = (3, 3), ((1, 1), (1, 1))
    # float32 both times: rounding x's normalised values to bfloat16 first makes ties, which go elsewhere.
    agree(
        way,
        "float32",
        partial(ops.batch_norm_relu_max_pool, strides=strides),
        lambda *a: plain.batch_norm_relu_max_pool(1e-5, None, window, strides, padding, *a),
        [normal(1, *shape, channels).astype(dtype)],
        [normal(2, channels), normal(3, channels)],
    )


@pytest.mark.parametrize("way", WAYS)
def test_variance_keeps_its_digits_far_from_zero(way):
    """Numpy in float64 is the oracle: E[x^2] - E[x]^2 in float32 would be wrong in every digit."""
    if way == "xla":
        pytest.skip("XLA's one-pass variance is Flax's, digits and all")
    x = normal(1, 8, 6, 6, 3) + 1000
    with ops.cpu_kernels(way):
        _, mean, var = jax.jit(ops.batch_norm)(x, jnp.ones(3), jnp.ones(3))
    np.testing.assert_allclose(mean, np.mean(np.asarray(x, np.float64), (0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, np.var(np.asarray(x, np.float64), (0, 1, 2)), rtol=1e-4)


def block(x, w, b, scale, offset):
    """A residual block and a pool: every operation once."""
    y = ops.conv(x, w, b, padding=((1, 1), (1, 1)))
    y, mean, var = ops.batch_norm(y, scale, offset, relu=True, residual=x)
    return ops.max_pool(y), mean, var


def block_operands(images=4):
    return (
        normal(1, images, 8, 8, 16),
        normal(2, 3, 3, 16, 16) / 12,
        normal(3, 16),
        normal(4, 16),
        normal(5, 16),
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("transform", ["remat", "vmap"])
def test_transforms(way, transform):
    operands = block_operands()
    with ops.cpu_kernels(way):
        plainly = jax.jit(partial(values_and_gradients, block))(*operands)
        if transform == "remat":
            found = jax.jit(partial(values_and_gradients, jax.checkpoint(block)))(*operands)
        else:
            stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), operands)
            found = jax.jit(jax.vmap(partial(values_and_gradients, block)))(*stacked)
            found = jax.tree.map(lambda a: a[0], found)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(plainly), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_statistics_over_8_devices_are_those_of_the_whole_batch(way):
    """Under pmap with axis_name, outputs and summed gradients are one device's on the whole batch."""
    x, _, _, scale, offset = block_operands(16)
    residual, weights = normal(6, *x.shape), normal(7, *x.shape)

    def loss(x, residual, weights, scale, offset, axis_name):
        y, mean, var = ops.batch_norm(x, scale, offset, relu=True, residual=residual, axis_name=axis_name)
        return jnp.sum(y * weights), (y, mean, var)

    gradient = jax.grad(loss, (0, 1, 3, 4), has_aux=True)
    split = [a.reshape(8, 2, *a.shape[1:]) for a in (x, residual, weights)]
    with ops.cpu_kernels(way):
        many = jax.pmap(partial(gradient, axis_name="b"), "b", in_axes=(0, 0, 0, None, None))(*split, scale, offset)
    (dx, dr, ds, do), (y, mean, var) = many
    one = jax.jit(partial(gradient, axis_name=None))(x, residual, weights, scale, offset)
    for got, want in zip((dx, dr, y), (one[0][0], one[0][1], one[1][0]), strict=True):
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=2e-5)
    for got, want in zip((ds, do), one[0][2:], strict=True):
        np.testing.assert_allclose(got.sum(0), want, rtol=1e-4, atol=1e-4)
    for got, want in zip((mean, var), one[1][1:], strict=True):
        np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_empty_batch(way):
    with ops.cpu_kernels(way):
        y = jax.jit(ops.conv)(jnp.zeros((0, 5, 5, 3)), jnp.ones((3, 3, 3, 4)))
        assert y.shape == (0, 3, 3, 4)
        assert jax.jit(ops.max_pool)(y).shape == (0, 2, 2, 4)


def test_refusals_name_argument_and_way_out():
    x, w = jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 3, 4))
    with pytest.raises(ValueError, match=r"kernel \(3, 3, 3, 4\) does not fit x .* groups 1"):
        ops.conv(x, w)
    with pytest.raises(ValueError, match="use larger images or more padding"):
        ops.conv(x[:, :2], w, groups=2)
    with pytest.raises(ValueError, match="choose one of auto, onednn, plain, xla"):
        ops.use_cpu_kernels("mkl")


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("way", ["plain", *WAYS])
@pytest.mark.parametrize("shape", [(2, 128, 129, 1), (33, 32, 32, 3), (5, 91, 73, 16)])
def test_sums_over_many_pixels(way, shape):
    """Against float64. jaxlib 0.10.2 can compile a product and a sum of 32,769 or more terms to wrong code for a CPU.

    Source: https://github.com/jax-ml/jax/issues/39103
    """
    x, dy, scale = normal(1, *shape) + 0.5, normal(2, *shape), 1 + 0.1 * normal(3, shape[-1])

    def loss(x, scale, bias, dy):
        return jnp.sum(ops.batch_norm(x, scale, bias, relu=False)[0] * dy)

    with ops.cpu_kernels(way):
        y, mean, var = jax.jit(lambda *a: ops.batch_norm(*a))(x, scale, scale)
        _, dscale, dbias = jax.jit(jax.grad(loss, (0, 1, 2)))(x, scale, scale, dy)
        many = jax.jit(jax.vmap(lambda x, dy: jnp.sum(x * dy)))(x, dy)  # the form of the report
    exact, weights = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    centred = exact - exact.mean((0, 1, 2))
    unit = centred / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    size = exact.size / shape[-1]
    for got, want, limit in (
        (mean, exact.mean((0, 1, 2)), 1e-5),
        (var, exact.var((0, 1, 2)), 1e-4),
        (y, unit * np.asarray(scale) + np.asarray(scale), 1e-3),
        (dscale / size, (unit * weights).sum((0, 1, 2)) / size, 1e-4),
        (dbias / size, weights.sum((0, 1, 2)) / size, 1e-4),
        (many / size, (exact * weights).sum((1, 2, 3)) / size, 1e-4),
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=limit)
