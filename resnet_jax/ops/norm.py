"""Batch normalisation, with the addition and the ReLU that follow it in a residual network."""

import jax
from jax import lax
from jax import numpy as jnp


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float = 1e-5,
    axis_name: str | None = None,
    relu: bool = False,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise by the statistics of this batch: act((x - mean) / sqrt(var + epsilon) * scale + bias + residual).

    x, residual: (N, H, W, C); scale, bias: (C,) -> y like x, mean (C,), var (C,).
    Mean and biased variance are taken in float32 over N, H, W, and over the devices of axis_name when it is given.
    Source: arXiv:1502.03167.
    """
    x32 = x.astype(jnp.float32)
    # one pass over x and one all-reduce, instead of the mean first and the variance after it
    moments = jnp.stack([x32.mean((0, 1, 2)), lax.square(x32).mean((0, 1, 2))])
    if axis_name is not None:
        moments = lax.pmean(moments, axis_name)
    mean, mean_of_squares = moments
    var = jnp.maximum(mean_of_squares - lax.square(mean), 0.0)  # rounding can leave it below zero
    y = batch_norm_inference(x, scale, bias, mean, var, epsilon=epsilon, relu=relu, residual=residual)
    return y, mean, var


def batch_norm_inference(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    epsilon: float = 1e-5,
    relu: bool = False,
    residual: jax.Array | None = None,
) -> jax.Array:
    """Normalise by given statistics: act((x - mean) / sqrt(var + epsilon) * scale + bias + residual).

    x, residual: (N, H, W, C); scale, bias, mean, var: (C,) -> like x. The arithmetic is float32.
    """
    y = (x.astype(jnp.float32) - mean) * (lax.rsqrt(var + epsilon) * scale) + bias
    if residual is not None:
        y = y + residual.astype(jnp.float32)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype)
