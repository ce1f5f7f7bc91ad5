"""The operations in forms for which XLA moves fewer bytes on a GPU or TPU.

They are the same functions as those of plain.py. The activations of the stem are the largest arrays of a network, four
times those of the first stage, and these forms pass over them five times instead of eleven. docs/accelerators.md has
the bytes of both.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from resnet_jax.ops import plain, xla_cpu

IMAGE_CHANNELS = 4  # at most; the layers of the networks have more


def conv(strides, padding, groups, x: Array, kernel: Array, bias: Array | None) -> Array:
    """See api.conv."""
    if bias is not None and takes_ones(strides, padding, groups, x, kernel):
        return conv_with_ones(strides, padding, x, kernel, bias)
    return plain.conv(strides, padding, groups, x, _cast_once(x.dtype, kernel), bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cast_once(dtype, kernel: Array) -> Array:
    """The kernel in a dtype. Without the barrier each pass on a TPU reads the float32 kernel and casts it again.

    The gradient has no barrier: behind one XLA could not keep its float32 sums, and would round them to bfloat16.
    """
    return kernel if kernel.dtype == dtype else lax.optimization_barrier(kernel.astype(dtype))


def _cast_once_forward(dtype, kernel):
    return _cast_once(dtype, kernel), kernel[:0]  # an empty array, for its dtype


def _cast_once_backward(dtype, like, gradient):
    return (gradient.astype(like.dtype),)


_cast_once.defvjp(_cast_once_forward, _cast_once_backward)


def conv_with_ones(strides, padding, x: Array, kernel: Array, bias: Array) -> Array:
    """A convolution whose bias is the kernel of one more channel, which is 1 everywhere.

    So one pass over the output's gradient yields the gradients of kernel and bias. XLA needs a second one for a sum.
    """
    (height, width), ((top, _), (left, _)) = kernel.shape[:2], padding
    x = jnp.concatenate([x, jnp.ones((*x.shape[:3], 1), x.dtype)], 3)
    edges = ((top, height - 1 - top), (left, width - 1 - left), (0, 0), (0, 0))
    bias = jnp.pad(bias.astype(kernel.dtype)[None, None, None], edges)
    return plain.conv(strides, padding, 1, x, jnp.concatenate([kernel, bias], 2), None)


def takes_ones(strides, padding, groups, x: Array, kernel: Array) -> bool:
    """Whether this is the convolution of an image in bfloat16, and one place of every window lies in the image.

    In float32 a TPU would round the bias, as it rounds kernels.
    """
    inside = all(
        low < side and (n + low + high - side) // step * step < n
        for n, side, step, (low, high) in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    )
    return x.dtype == jnp.bfloat16 and x.shape[3] <= IMAGE_CHANNELS and groups == 1 and inside


def max_pool(window, strides, padding, x: Array) -> Array:
    """See api.max_pool. XLA's gradient of a max-pool moves ten times the bytes on a GPU, but is the best on a TPU."""
    pool = (window, strides, padding)
    return lax.platform_dependent(x, tpu=partial(plain.max_pool, *pool), default=partial(xla_cpu.max_pool, *pool))


def batch_norm(epsilon, axis_name, relu, x, scale, bias, residual) -> tuple[Array, Array, Array]:
    """See api.batch_norm. The gradient by hand moves fewer bytes on a GPU; a TPU fuses XLA's into the convolutions."""
    plainly = partial(plain.batch_norm, epsilon, axis_name, relu)
    if not relu or residual is not None:
        return plainly(x, scale, bias, residual)
    by_hand = partial(_batch_norm_relu, epsilon, axis_name)
    return lax.platform_dependent(x, scale, bias, tpu=partial(plainly, residual=None), default=by_hand)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _batch_norm_relu(epsilon, axis_name, x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    return plain.batch_norm(epsilon, axis_name, True, x, scale, bias, None)


def _batch_norm_relu_forward(epsilon, axis_name, x, scale, bias):
    y, mean, var = plain.batch_norm(epsilon, axis_name, True, x, scale, bias, None)
    return (y, mean, var), (x, mean, var, scale, bias)


def _batch_norm_relu_backward(epsilon, axis_name, saved, cotangents):
    x, mean, var, scale, bias = saved
    of_x = mean, var, scale, bias
    dy = cotangents[0]
    _, means, sums = _through_relu(epsilon, axis_name, x.size // x.shape[3], x, *of_x, dy)
    # Behind the barrier g is computed again in the second pass. XLA would store it for both.
    x, dy, means = lax.optimization_barrier((x, dy, means))
    g = _masked(epsilon, x, *of_x, dy)
    return _input_gradient(epsilon, x, mean, var, scale, g, means), *sums


_batch_norm_relu.defvjp(_batch_norm_relu_forward, _batch_norm_relu_backward)


def batch_norm_relu_max_pool(epsilon, axis_name, window, strides, padding, x, scale, bias):
    """See api.batch_norm_relu_max_pool."""
    return _norm_and_pool(epsilon, axis_name, (window, strides, padding), x, scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _norm_and_pool(epsilon, axis_name, pool, x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Pool first, then normalise, so that the normalised image is never stored.

    Both orders give the same values, as normalisation is monotonic: where the scale is negative the smallest pixel
    of a window becomes the largest. The gradients of scale and bias are sums over the pooled pixels. That of x is an
    element-wise function of x and the scattered gradient, which XLA fuses into the gradient of the kernel before it.
    """
    return _norm_and_pool_forward(epsilon, axis_name, pool, x, scale, bias)[0]


def _norm_and_pool_forward(epsilon, axis_name, pool, x, scale, bias):
    sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
    x = sign * x  # all that follows uses the product, so that the convolution writes nothing else
    mean, var = _moments(x, sign, axis_name)
    pooled, unpool = jax.vjp(partial(max_pool, *pool), x)
    extreme = sign * pooled
    y = plain.normalise(extreme, mean, var, scale, bias, None, epsilon, True)
    return (y, mean, var), (x, unpool, extreme, sign, mean, var, scale, bias)


def _moments(x: Array, sign: Array, axis_name: str | None) -> tuple[Array, Array]:
    """plain.moments of sign * x."""
    x = plain.widened(x)
    mean, square = sign * jnp.mean(x, (0, 1, 2)), jnp.mean(lax.square(x), (0, 1, 2))
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    return mean, jnp.maximum(square - lax.square(mean), 0.0)


def _norm_and_pool_backward(epsilon, axis_name, pool, saved, cotangents):
    x, unpool, extreme, sign, mean, var, scale, bias = saved
    pixels = x.size // x.shape[3]
    g, means, sums = _through_relu(epsilon, axis_name, pixels, extreme, mean, var, scale, bias, cotangents[0])
    (scattered,) = unpool(g)
    return _input_gradient(epsilon, sign * x, mean, var, scale, scattered, means), *sums


_norm_and_pool.defvjp(_norm_and_pool_forward, _norm_and_pool_backward)


def _through_relu(epsilon, axis_name, pixels, x, mean, var, scale, bias, dy):
    """The gradient g before the ReLU, the means of g and of g * unit, and the gradients of scale and bias."""
    g = _masked(epsilon, x, mean, var, scale, bias, dy)
    wide, unit = plain.widened(g), (plain.widened(x) - mean) * lax.rsqrt(var + epsilon)
    dscale, dbias = jnp.sum(wide * unit, (0, 1, 2)), jnp.sum(wide, (0, 1, 2))
    means = (dbias / pixels, dscale / pixels)
    return g, means if axis_name is None else lax.pmean(means, axis_name), (dscale, dbias)


def _masked(epsilon, x, mean, var, scale, bias, dy) -> Array:
    """dy where the ReLU let the value through, else 0."""
    return jnp.where((plain.widened(x) - mean) * (lax.rsqrt(var + epsilon) * scale) + bias > 0, dy, 0)


def _input_gradient(epsilon, x, mean, var, scale, g, means) -> Array:
    """The gradient of batch norm's input. Source: arXiv:1502.03167, section 3."""
    deviation = lax.rsqrt(var + epsilon)
    unit = (plain.widened(x) - mean) * deviation
    return ((scale * deviation) * (plain.widened(g) - means[0] - unit * means[1])).astype(x.dtype)
