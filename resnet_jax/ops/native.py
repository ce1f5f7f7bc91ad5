"""The operations as calls of the native library resnet_jax_onednn, through jax.ffi.

A missing operand is passed as an empty array. Under vmap the calls run sequentially, one for each element.
"""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct, lax

from resnet_jax.ops import winograd
from resnet_jax.ops.plain import add_relu
from resnet_jax.ops.select import simd_level, winograd_chosen
from resnet_jax.ops.varying import axes_of, vary_over
from resnet_jax.ops.winograd import DIRECT, Tiles
from resnet_jax.ops.xla_cpu import crop_to_image

NOTHING = (0,)


def _call(target: str, results, *operands: Array, **attributes):
    """Call `resnet_jax_<target>`. Tuples of ints are passed as int64 arrays, floats as float32.

    Under jax.shard_map the results vary over every mesh axis over which an operand does.
    """
    axes = axes_of(*operands)
    call = jax.ffi.ffi_call(f"resnet_jax_{target}", results, vmap_method="sequential")
    outputs = call(
        *(vary_over(axes, operand) for operand in operands),
        **{name: _attribute(value) for name, value in attributes.items()},
    )
    return jax.tree.map(partial(vary_over, axes), outputs)


def _attribute(value):
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return np.float32(value)
    return np.asarray(value, np.int64) if isinstance(value, tuple) else np.int64(value)


def _flat(padding) -> tuple[int, int, int, int]:
    return (*padding[0], *padding[1])


def _windows(size, window, strides, padding) -> tuple[int, int]:
    """The number of windows along H and W: the size of the output."""
    return tuple(
        (n + low + high - side) // step + 1
        for n, side, step, (low, high) in zip(size, window, strides, padding, strict=True)
    )


def _empty(dtype) -> Array:
    return jnp.zeros(NOTHING, dtype)


def _channels(x: Array) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(x.shape[-1:], jnp.float32)


def _like(x: Array) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(x.shape, x.dtype)


def conv(strides, padding, groups, x: Array, kernel: Array, bias: Array | None) -> Array:
    """See api.conv."""
    kernel, padding = crop_to_image(x.shape[1:3], strides, padding, kernel)
    tiles = _tiles(strides, padding, groups, x, kernel)
    if _is_narrow(strides, padding, groups, x, kernel, tiles):
        return _narrow_conv(padding, tiles, x, kernel, bias)
    return _conv(strides, padding, groups, tiles, x, kernel, bias)


def _tiles(strides, padding, groups, x: Array, kernel: Array) -> Tiles:
    return winograd.tiles(strides, padding, groups, x, kernel, simd_level()) if winograd_chosen(x.dtype) else DIRECT


def _is_narrow(strides, padding, groups, x: Array, kernel: Array, tiles: Tiles) -> bool:
    """Whether the convolution takes the form of _narrow_conv."""
    centred = padding[1] == ((kernel.shape[1] - 1) // 2,) * 2 and kernel.shape[1] % 2 == 1
    same_size = kernel.shape[1] > 1 and strides == (1, 1) and groups == 1 and centred
    return x.shape[2] in (2, 3) and same_size and not tiles.forward


def conv_add_relu(
    relu,
    strides,
    padding,
    groups,
    x: Array,
    kernel: Array,
    bias: Array,
    residual: Array | None,
    digest: Array | None,
) -> Array:
    """See api.conv_add_relu."""
    cropped, padding = crop_to_image(x.shape[1:3], strides, padding, kernel)
    if _is_narrow(strides, padding, groups, x, cropped, _tiles(strides, padding, groups, x, cropped)):
        return add_relu(relu, conv(strides, padding, groups, x, cropped, None), bias, residual)
    digest = digest if cropped is kernel else None
    return _conv_add_relu(relu, strides, padding, groups, x, cropped, bias, residual, digest)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _conv_add_relu(relu, strides, padding, groups, x, kernel, bias, residual, digest) -> Array:
    """One call. The native library keeps a converted kernel that has a digest, if the images are few."""
    height, width = _windows(x.shape[1:3], kernel.shape[:2], strides, padding)
    y = ShapeDtypeStruct((x.shape[0], height, width, kernel.shape[3]), x.dtype)
    tile = winograd.inference_tile(strides, padding, groups, x, kernel, simd_level()) if winograd_chosen(x.dtype) else 0
    target, how = _form("inference", strides, padding, groups, tile)
    added = (bias.astype(jnp.float32), _empty(x.dtype) if residual is None else residual)
    mark = _empty(jnp.uint32) if digest is None else digest
    return _call(target, y, x, kernel.astype(jnp.float32), *added, mark, relu=relu, **how)


def _conv_add_relu_forward(relu, strides, padding, groups, *operands):
    return _conv_add_relu(relu, strides, padding, groups, *operands), operands


def _conv_add_relu_backward(relu, strides, padding, groups, saved, dy):
    """The gradients of the separate operations, which are computed again."""
    *operands, _ = saved

    def separate(x, kernel, bias, residual):
        return add_relu(relu, conv(strides, padding, groups, x, kernel, None), bias, residual)

    return *jax.vjp(separate, *operands)[1](dy), None


_conv_add_relu.defvjp(_conv_add_relu_forward, _conv_add_relu_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _narrow_conv(padding, tiles: Tiles, x: Array, kernel: Array, bias: Array | None) -> Array:
    """Convolution of images that are 2 or 3 pixels wide; the output has the same size.

    oneDNN vectorises along rows of pixels and is slow if a row has only 3. So each pass uses the form that was
    fastest at 3x3x512, batch 128. Milliseconds against oneDNN's own kernel, on 2 cores of a Zen 5:
    forward and input gradient by columns, 5.6 and 9.5 in bfloat16, 9.4 and 14.1 in float32;
    weight gradient with images side by side, 7.3 and 13.8 in bfloat16. In float32 oneDNN's own is faster.
    winograd.tiles names the passes that take another form.
    """
    return _by_columns(padding, x, kernel, bias)


def _narrow_conv_forward(padding, tiles, x, kernel, bias):
    return _narrow_conv(padding, tiles, x, kernel, bias), (x, kernel, bias)


def _narrow_conv_backward(padding, tiles: Tiles, saved, dy):
    x, kernel, bias = saved
    (dx,) = jax.vjp(lambda x: _by_columns(padding, x, kernel, None), x)[1](dy)
    if x.dtype == jnp.bfloat16 and not tiles.weight_gradient:
        gap = padding[1][0]
        x, dy = _side_by_side(x, gap), _side_by_side(dy, gap)
    dkernel, dbias = jax.vjp(lambda *p: _conv((1, 1), padding, 1, tiles, x, *p), kernel, bias)[1](dy)
    return dx, dkernel, dbias


_narrow_conv.defvjp(_narrow_conv_forward, _narrow_conv_backward)


def _by_columns(padding, x: Array, kernel: Array, bias: Array | None) -> Array:
    """One convolution for each output column. Its input columns become channels, the images become pixels.

    So no product has a padding pixel as a factor, and a row is as long as the batch.
    """
    n, height, width, c = x.shape
    side, reach, outputs = kernel.shape[0], padding[1][0], kernel.shape[3]
    rows = x.transpose(1, 0, 2, 3)  # (H, N, W, C)
    columns = []
    for j in range(width):
        first, beyond = max(0, j - reach), min(width, j + reach + 1)
        seen = rows[:, :, first:beyond].reshape(1, height, n, (beyond - first) * c)
        part = kernel[:, first - j + reach : beyond - j + reach].reshape(side, 1, (beyond - first) * c, outputs)
        column = cast(Array, _conv((1, 1), (padding[0], (0, 0)), 1, DIRECT, seen, part, bias))
        columns.append(column[0])
    return jnp.stack(columns, 2).transpose(1, 0, 2, 3)


def _side_by_side(x: Array, gap: int) -> Array:
    """(N, H, W, C) -> (1, H, N * (W + gap), C), with `gap` columns of zeros after each image."""
    n, height, width, c = x.shape
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, gap), (0, 0)))
    return padded.transpose(1, 0, 2, 3).reshape(1, height, n * (width + gap), c)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _conv(strides, padding, groups, tiles: Tiles, x: Array, kernel: Array, bias: Array | None) -> Array:
    """A pass whose tile is not 0 takes Winograd's form; the others are oneDNN's direct convolution."""
    height, width = _windows(x.shape[1:3], kernel.shape[:2], strides, padding)
    y = ShapeDtypeStruct((x.shape[0], height, width, kernel.shape[3]), x.dtype)
    added = _empty(jnp.float32) if bias is None else bias.astype(jnp.float32)
    target, how = _form("forward", strides, padding, groups, tiles.forward)
    return _call(target, y, x, kernel.astype(jnp.float32), added, **how)


def _form(direction: str, strides, padding, groups, tile: int) -> tuple[str, dict]:
    """The native function of that pass, and its attributes."""
    if tile:
        how = {"padding": _flat(padding), "tile": tile}
        return f"winograd_{direction}", how | ({"strides": strides} if direction == "backward_weights" else {})
    return f"conv_{direction}", {"strides": strides, "padding": _flat(padding), "groups": groups}


def _conv_forward(strides, padding, groups, tiles, x, kernel, bias):
    return _conv(strides, padding, groups, tiles, x, kernel, bias), (x, kernel, bias)


def _conv_backward(strides, padding, groups, tiles: Tiles, saved, dy):
    x, kernel, bias = saved
    # These are two calls, so that XLA drops the first one where dx is unused (the first layer).
    target, how = _form("backward_data", strides, padding, groups, tiles.input_gradient)
    dx = _call(target, _like(x), dy, kernel.astype(jnp.float32), **how)
    gradients = (
        ShapeDtypeStruct(kernel.shape, jnp.float32),
        ShapeDtypeStruct(NOTHING if bias is None else bias.shape, jnp.float32),
    )
    target, how = _form("backward_weights", strides, padding, groups, tiles.weight_gradient)
    dkernel, dbias = _call(target, gradients, x, dy, **how)
    return dx, dkernel.astype(kernel.dtype), None if bias is None else dbias.astype(bias.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _pooled(x: Array, window, strides, padding) -> tuple[ShapeDtypeStruct, ShapeDtypeStruct]:
    """The pooled images, and the index of the largest pixel in each window."""
    shape = (x.shape[0], *_windows(x.shape[1:3], window, strides, padding), x.shape[3])
    return ShapeDtypeStruct(shape, x.dtype), ShapeDtypeStruct(shape, jnp.uint8)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def max_pool(window, strides, padding, x: Array) -> Array:
    """See api.max_pool."""
    return _max_pool_forward(window, strides, padding, x)[0]


def _max_pool_forward(window, strides, padding, x):
    how = {"window": window, "strides": strides, "padding": _flat(padding)}
    y, index = _call("max_pool", _pooled(x, window, strides, padding), x, **how)
    # An array of no bytes carries the shape of x to the backward pass, so that x itself can be freed.
    return y, (index, jnp.zeros((*x.shape[:3], 0), x.dtype))


def _max_pool_backward(window, strides, padding, saved, dy):
    index, size = saved
    dx = ShapeDtypeStruct((*size.shape[:3], dy.shape[3]), dy.dtype)
    how = {"window": window, "strides": strides, "padding": _flat(padding)}
    return (_call("max_pool_gradient", dx, dy, index, **how),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _moments(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and biased variance. Over devices: the mean of the variances plus the variance of the means."""
    mean, var = _call("bn_moments", (_channels(x), _channels(x)), x)
    if axis_name is not None:
        mean, local = lax.pmean(mean, axis_name), mean
        var = lax.pmean(var + lax.square(local - mean), axis_name)
    return mean, var


def _row_means(x: Array, sums: tuple[Array, ...], axis_name: str | None) -> tuple[Array, ...]:
    """Sums over the rows of this device -> means over the rows of all devices."""
    means = tuple(s / (x.size // x.shape[-1]) for s in sums)
    return means if axis_name is None else lax.pmean(means, axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def batch_norm(epsilon, axis_name, relu, x, scale, bias, residual) -> tuple[Array, Array, Array]:
    """See api.batch_norm."""
    return _batch_norm_forward(epsilon, axis_name, relu, x, scale, bias, residual)[0]


def _batch_norm_forward(epsilon, axis_name, relu, x, scale, bias, residual):
    mean, var = _moments(x, axis_name)
    added = _empty(x.dtype) if residual is None else residual
    y = _call("bn_normalise", _like(x), x, mean, var, scale, bias, added, epsilon=epsilon, relu=relu)
    # Without a residual, the backward pass recomputes the mask of the ReLU from x.
    output = y if relu and residual is not None else _empty(x.dtype)
    return (y, mean, var), (x, output, mean, var, scale, bias, residual is not None)


def _batch_norm_backward(epsilon, axis_name, relu, saved, cotangents):
    x, output, mean, var, scale, bias, has_residual = saved
    dy = cotangents[0]  # api.batch_norm stops the gradients of mean and var
    g_is_output = relu and has_residual
    how = {"epsilon": epsilon, "relu": relu}
    g = _like(x) if g_is_output else ShapeDtypeStruct(NOTHING, x.dtype)
    results = (_channels(x), _channels(x), g)
    *sums, g = _call("bn_gradient_sums", results, x, dy, output, mean, var, scale, bias, **how)
    means = _row_means(x, tuple(sums), axis_name)
    # With a residual, the gradient has already been masked and stored in g.
    g, how["relu"] = (g, False) if g_is_output else (dy, relu)
    dx = _call("bn_gradient", _like(x), x, g, mean, var, scale, bias, *means, **how)
    dbias, dscale = sums
    return dx, dscale, dbias, g if has_residual else None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def batch_norm_relu_max_pool(epsilon, axis_name, window, strides, padding, x, scale, bias):
    """See api.batch_norm_relu_max_pool."""
    return _bn_pool_forward(epsilon, axis_name, window, strides, padding, x, scale, bias)[0]


def _bn_pool_forward(epsilon, axis_name, window, strides, padding, x, scale, bias):
    mean, var = _moments(x, axis_name)
    how = {"epsilon": epsilon, "window": window, "strides": strides, "padding": _flat(padding)}
    y, index = _call("bn_pool", _pooled(x, window, strides, padding), x, mean, var, scale, bias, **how)
    return (y, mean, var), (x, index, mean, var, scale)


def _bn_pool_backward(epsilon, axis_name, window, strides, padding, saved, cotangents):
    x, index, mean, var, scale = saved
    dy = cotangents[0]
    how = {"epsilon": epsilon, "window": window, "strides": strides, "padding": _flat(padding)}
    sums = _call("bn_pool_gradient_sums", (_channels(x), _channels(x)), x, dy, index, mean, var, **how)
    means = _row_means(x, tuple(sums), axis_name)
    dx = _call("bn_pool_gradient", _like(x), x, dy, index, mean, var, scale, *means, **how)
    dbias, dscale = sums
    return dx, dscale, dbias


batch_norm_relu_max_pool.defvjp(_bn_pool_forward, _bn_pool_backward)
