"""ops.conv_add_relu against the same sum in float64, in every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from thorough import thorough_except

from resnet_jax import ops
from resnet_jax.ops import select

KERNELS = ("auto", "onednn", "xla", "plain")
# x, kernel, strides, padding, groups; the first two have Winograd's form with AVX2 and AVX-512, "wide" in bfloat16 too
CASES = {
    "3x3": ((2, 13, 14, 16), (3, 3, 16, 32), (1, 1), ((1, 1), (1, 1)), 1),
    "wide": ((8, 13, 12, 64), (3, 3, 64, 64), (1, 1), ((1, 1), (1, 1)), 1),
    "3x3, stride 2": ((2, 9, 8, 16), (3, 3, 16, 24), (2, 2), ((1, 1), (1, 1)), 1),
    "1x1": ((3, 5, 6, 24), (1, 1, 24, 8), (1, 1), ((0, 0), (0, 0)), 1),
    "7x7": ((1, 20, 18, 3), (7, 7, 3, 16), (2, 2), ((3, 3), (3, 3)), 1),
    "groups": ((2, 7, 7, 32), (3, 3, 8, 32), (1, 1), ((1, 1), (1, 1)), 4),
    "narrow": ((4, 3, 3, 16), (3, 3, 16, 16), (1, 1), ((1, 1), (1, 1)), 1),
    "one pixel": ((4, 1, 1, 16), (3, 3, 16, 16), (1, 1), ((1, 1), (1, 1)), 1),
}


@pytest.fixture(params=KERNELS)
def kernels(request):
    if request.param == "onednn" and not ops.native_available():
        pytest.skip("the native kernels are not built")
    with ops.cpu_kernels(request.param):
        yield request.param


def made(name: str, dtype, seed: int = 0):
    """The operands x, kernel, bias and residual, and the options of the window."""
    shape, kernel, strides, padding, groups = CASES[name]
    window = {"strides": strides, "padding": padding, "groups": groups}
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.normal(size=shape), dtype)
    kernel = jnp.asarray(random.normal(size=kernel) / 10, jnp.float32)
    bias = jnp.asarray(random.normal(size=kernel.shape[3:]), jnp.float32)
    y = jax.eval_shape(lambda x, kernel: ops.conv(x, kernel, **window), x, kernel)
    return (x, kernel, bias, jnp.asarray(random.normal(size=y.shape), dtype)), window


def exact(x, kernel, bias, residual, relu: bool, strides, padding, groups) -> np.ndarray:
    """The sum in float64, one tap and one group after the other."""
    x, kernel, bias = (np.asarray(a, np.float64) for a in (x, kernel, bias))
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = ((padded.shape[1 + a] - kernel.shape[a]) // strides[a] + 1 for a in (0, 1))
    parts = []
    for inputs, outputs in zip(np.split(padded, groups, 3), np.split(kernel, groups, 3), strict=True):
        taps = (
            inputs[:, i : i + rows * strides[0] : strides[0], j : j + columns * strides[1] : strides[1]][
                :, :rows, :columns
            ]
            @ outputs[i, j]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )
        parts.append(sum(taps))
    y = np.concatenate(parts, 3) + bias + (0 if residual is None else np.asarray(residual, np.float64))
    return np.maximum(y, 0) if relu else y


@pytest.mark.parametrize("dtype", thorough_except((jnp.float32, jnp.bfloat16), jnp.bfloat16))
@pytest.mark.parametrize("name", CASES)
def test_values(name, dtype, kernels):
    (x, kernel, bias, residual), window = made(name, dtype)
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    for relu in (False, True):
        for added in (None, residual):
            call = jax.jit(lambda *a, relu=relu: ops.conv_add_relu(*a[:3], residual=a[3], relu=relu, **window))
            found, want = call(x, kernel, bias, added), exact(x, kernel, bias, added, relu, **window)
            assert found.dtype == dtype
            np.testing.assert_allclose(np.asarray(found, np.float64), want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("name", ["3x3", "1x1", "narrow"])
def test_kernels_that_are_kept_are_known_by_their_digest(name, kernels):
    (x, *_), window = made(name, jnp.float32)
    call = jax.jit(lambda digest, *a: ops.conv_add_relu(*a, digest=digest, **window))
    for seed in (1, 2, 1, 3, 2):
        (_, kernel, bias, _), _ = made(name, jnp.float32, seed)
        want = exact(x, kernel, bias, None, False, **window)
        found = call(jnp.full(4, seed, jnp.uint32), x, kernel, bias)
        np.testing.assert_allclose(found, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_one_digest_serves_every_size_of_image(kernels):
    (_, kernel, bias, _), window = made("3x3", jnp.float32)
    call = jax.jit(lambda *a: ops.conv_add_relu(*a, digest=jnp.arange(4, dtype=jnp.uint32), **window))
    for size in (1, 2, 3, 5, 13, 40):
        for dtype, tolerance in ((jnp.float32, 2e-5), (jnp.bfloat16, 2e-2)):
            x = jnp.asarray(np.random.default_rng(size).normal(size=(1, size, size, 16)), dtype)
            want = exact(x, kernel, bias, None, False, **window)
            found = np.asarray(call(x, kernel, bias), np.float64)
            np.testing.assert_allclose(found, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("name", ["3x3", "3x3, stride 2", "narrow"])
def test_gradients_are_those_of_the_separate_operations(name, kernels):
    operands, window = made(name, jnp.float32)
    weights = np.random.default_rng(9).normal(size=operands[3].shape).astype(np.float32)

    def joined(x, kernel, bias, residual):
        y = ops.conv_add_relu(
            x, kernel, bias, residual=residual, relu=True, digest=jnp.arange(4, dtype=jnp.uint32), **window
        )
        return jnp.sum(y * weights)

    def separate(x, kernel, bias, residual):
        layout = ("NHWC", "HWIO", "NHWC")
        how = {"dimension_numbers": layout, "feature_group_count": window["groups"]}
        y = lax.conv_general_dilated(x, kernel, window["strides"], window["padding"], **how)
        return jnp.sum(jax.nn.relu(y + bias + residual) * weights)

    found = jax.jit(jax.grad(joined, (0, 1, 2, 3)))(*operands)
    for got, want in zip(found, jax.jit(jax.grad(separate, (0, 1, 2, 3)))(*operands), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize(("name", "dtype"), [("3x3", jnp.float32), ("wide", jnp.float32), ("wide", jnp.bfloat16)])
def test_winograds_form_is_taken(name, dtype):
    if not select.winograd_chosen(dtype):
        pytest.skip("needs the native kernels and AVX2, and AVX-512 without AMX for bfloat16")
    (x, kernel, bias, _), window = made(name, dtype)
    text = jax.jit(lambda *a: ops.conv_add_relu(*a, **window)).lower(x, kernel, bias).as_text()
    assert "resnet_jax_winograd_inference" in text


def test_a_residual_of_another_shape():
    (x, kernel, bias, residual), window = made("1x1", jnp.float32)
    with pytest.raises(
        ValueError, match=r"conv_add_relu: residual float32\(3, 5, 5, 8\) must be float32\(3, 5, 6, 8\)"
    ):
        ops.conv_add_relu(x, kernel, bias, residual=residual[:, :, 1:], **window)
