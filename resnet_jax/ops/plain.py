"""The operations in XLA's own terms. They define the results.

They support every transformation of JAX: forward mode and derivatives of any order too.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(strides, padding, groups, x: Array, kernel: Array, bias: Array | None) -> Array:
    """See api.conv."""
    y = lax.conv_general_dilated(
        x, kernel.astype(x.dtype), strides, padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )
    return y if bias is None else y + bias.astype(x.dtype)


def conv_add_relu(relu, strides, padding, groups, x: Array, kernel: Array, bias: Array, residual, digest) -> Array:
    """See api.conv_add_relu."""
    return add_relu(relu, conv(strides, padding, groups, x, kernel, None), bias, residual)


def add_relu(relu: bool, y: Array, bias: Array, residual: Array | None) -> Array:
    """relu?(y + bias + residual?), at least in float32, then in y's type."""
    total = widened(y) + bias
    if residual is not None:
        total = total + widened(residual)
    return (jax.nn.relu(total) if relu else total).astype(y.dtype)


def max_pool(window, strides, padding, x: Array) -> Array:
    """See api.max_pool."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def widened(x: Array) -> Array:
    """x in the type of the arithmetic: float64 for float64, float32 for others."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def moments(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and biased variance over N, H and W, (C,) each, as E[x^2] - E[x]^2 in one pass, as Flax does."""
    x = widened(x)
    mean, square = jnp.mean(x, (0, 1, 2)), jnp.mean(lax.square(x), (0, 1, 2))
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    return mean, jnp.maximum(square - lax.square(mean), 0.0)


def normalise(x, mean, var, scale, bias, residual, epsilon, relu) -> Array:
    """relu?((x - mean) / sqrt(var + epsilon) * scale + bias + residual?), at least in float32, then in x's type."""
    y = (widened(x) - mean) * (lax.rsqrt(var + epsilon) * scale) + bias
    if residual is not None:
        y = y + widened(residual)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype)


def batch_norm(epsilon, axis_name, relu, x, scale, bias, residual) -> tuple[Array, Array, Array]:
    """See api.batch_norm."""
    mean, var = moments(x, axis_name)
    return normalise(x, mean, var, scale, bias, residual, epsilon, relu), mean, var


def batch_norm_relu_max_pool(epsilon, axis_name, window, strides, padding, x, scale, bias):
    """See api.batch_norm_relu_max_pool."""
    y, mean, var = batch_norm(epsilon, axis_name, True, x, scale, bias, None)
    return max_pool(window, strides, padding, y), mean, var
