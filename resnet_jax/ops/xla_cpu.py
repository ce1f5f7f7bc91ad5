"""The operations in forms that XLA compiles to faster code on a CPU.

XLA:CPU is fast at forward convolutions, matrix products, float32 sums and element-wise loops. It is slow at
scatters and at the convolution that computes a weight gradient. So the gradients here are written by hand in
terms of the fast operations; those of wide 3x3 kernels use Winograd's algorithm. bfloat16 is computed in
float32 and rounded at the end, since XLA:CPU gains nothing from bfloat16 arithmetic.
"""

from functools import partial, reduce
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from resnet_jax.ops import plain

# Winograd's F(4x4, 3x3): the transforms of image, kernel and output tiles (arXiv:1509.09308, section 4.3)
WINOGRAD_IMAGE = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
WINOGRAD_KERNEL = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
).astype(np.float32)
WINOGRAD_OUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32
)
# Winograd is used from these sizes on. Measured (batch 128, best of 4, 2 cores), without and with it: 24x24x64
# 58 and 30 ms, 12x12x128 36 and 12, 6x6x256 25 and 17, 7x7x64 4.1 and 3.2. It is slower for 24x24x32, 4x4 and 3x3.
WINOGRAD_CHANNELS, WINOGRAD_TILES = 64, 512


def sum_rows(x: Array) -> Array:
    """(N, H, W, C) -> (C,): the sum over all pixels, in float32."""
    return jnp.sum(x, (0, 1, 2), jnp.float32)


def _taps(x: Array, window, strides, padding, size, fill) -> list[Array]:
    """For each place in the window, row by row: the pixel at that place of every window, (N, *size, C)."""
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))
    n, c, (height, width), (down, right) = x.shape[0], x.shape[3], size, strides
    return [
        lax.slice(
            padded,
            (0, i, j, 0),
            (n, i + (height - 1) * down + 1, j + (width - 1) * right + 1, c),
            (1, down, right, 1),
        )
        for i in range(window[0])
        for j in range(window[1])
    ]


def crop_to_image(size, strides, padding, kernel: Array) -> tuple[Array, tuple]:
    """Remove the rows and columns of the kernel that see only padding, and the padding that they need.

    ResNet-18 at 28x28 ends with 1x1 images, where one ninth of a 3x3 kernel remains.
    """
    kept, cropped = [], []
    for n, side, step, (low, high) in zip(size, kernel.shape[:2], strides, padding, strict=True):
        last = (n + low + high - side) // step * step - low  # where the last window starts
        # A place in the kernel sees the pixels place - low, place - low + step, ... up to place + last.
        sees = [p for p in range(side) if any(0 <= at < n for at in range(p - low, p + last + 1, step))]
        first, beyond = (sees[0], sees[-1] + 1) if sees else (0, side)
        kept.append(slice(first, beyond))
        cropped.append((low - first, last + beyond - n))
    if any(low < 0 or high < 0 for low, high in cropped):  # the windows skip pixels at an edge: keep all
        return kernel, padding
    return kernel[kept[0], kept[1]], tuple(cropped)


def conv(strides, padding, groups, x: Array, kernel: Array, bias: Array | None) -> Array:
    """See api.conv."""
    kernel, padding = crop_to_image(x.shape[1:3], strides, padding, kernel)
    return _conv(strides, padding, groups, x, kernel, bias)


def conv_add_relu(relu, strides, padding, groups, x: Array, kernel: Array, bias: Array, residual, digest) -> Array:
    """See api.conv_add_relu."""
    y = conv(strides, padding, groups, x.astype(jnp.float32), kernel, None)
    return plain.add_relu(relu, y, bias, residual).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _conv(strides, padding, groups, x: Array, kernel: Array, bias: Array | None) -> Array:
    f32 = jnp.float32
    y = plain.conv(strides, padding, groups, x.astype(f32), kernel.astype(f32), None)
    return (y if bias is None else y + bias.astype(f32)).astype(x.dtype)


def _conv_forward(strides, padding, groups, x, kernel, bias):
    return _conv(strides, padding, groups, x, kernel, bias), (x, kernel, bias)


def _conv_backward(strides, padding, groups, saved, dy):
    x, kernel, bias = saved
    dy, f32 = dy.astype(jnp.float32), jnp.float32
    how = partial(plain.conv, strides, padding, groups, bias=None)
    (dx,) = jax.vjp(lambda x: how(x, kernel.astype(f32)), x.astype(f32))[1](dy)
    dkernel = _kernel_gradient(strides, padding, groups, x.astype(f32), kernel, dy)
    return (
        dx.astype(x.dtype),
        dkernel.astype(kernel.dtype),
        None if bias is None else sum_rows(dy).astype(bias.dtype),
    )


def _kernel_gradient(strides, padding, groups, x: Array, kernel: Array, dy: Array) -> Array:
    """Winograd's algorithm for wide 3x3 kernels on many tiles; a matrix product for kernels with few inputs.

    The latter are 1x1 kernels and kernels of one-channel images; XLA's own gradient computes the others.
    """
    height, width, inputs, outputs = kernel.shape
    plain_3x3 = (height, width) == (3, 3) and strides == (1, 1) and groups == 1
    tiles = dy.shape[0] * -(-dy.shape[1] // 4) * -(-dy.shape[2] // 4)
    if plain_3x3 and min(inputs, outputs) >= WINOGRAD_CHANNELS and tiles >= WINOGRAD_TILES:
        return winograd_kernel_gradient(padding, x, dy)
    if groups > 1 or x.size == 0 or (inputs > 1 and height * width > 1):
        how = partial(plain.conv, strides, padding, groups, bias=None)
        (dkernel,) = jax.vjp(lambda k: how(x, k), kernel.astype(jnp.float32))[1](dy)
        return dkernel
    taps = _taps(x, (height, width), strides, padding, dy.shape[1:3], 0)
    columns = jnp.concatenate(taps, 3).reshape(-1, height * width * inputs)
    return lax.dot_general(columns, dy.reshape(-1, outputs), (((0,), (0,)), ((), ()))).reshape(kernel.shape)


_conv.defvjp(_conv_forward, _conv_backward)


def winograd_kernel_gradient(padding, x: Array, dy: Array) -> Array:
    """The gradient of a 3x3 kernel of stride 1, in a quarter of the multiplications: (3, 3, C, O).

    On tiles of 4x4 outputs, the convolution is out(kernel(k) * image(x)), where each function is linear along H and
    W. So the gradient is kernel^T(image(x) * out^T(dy)), summed over the tiles. Its rounding errors reach 1e-5 of
    the largest value; those of the direct sum reach 4e-6.
    Source: arXiv:1509.09308, section 4.3.
    """
    (_, height, width, outputs), inputs = dy.shape, x.shape[3]
    rows, columns = -(-height // 4), -(-width // 4)
    below, right = 4 * rows - height, 4 * columns - width
    (top, bottom), (left, far) = padding
    x = lax.pad(x, jnp.float32(0), ((0, 0, 0), (top, bottom + below, 0), (left, far + right, 0), (0, 0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, below), (0, right), (0, 0)))
    images, gradients = _transform(WINOGRAD_IMAGE, x, rows, 1), _transform(WINOGRAD_OUT.T, dy, rows, 1)
    # Without this barrier XLA computes each row transform again for every place in a column.
    images, gradients = lax.optimization_barrier((images, gradients))
    products = []
    for image, gradient in zip(images, gradients, strict=True):
        for a, b in zip(
            _transform(WINOGRAD_IMAGE, image, columns, 2), _transform(WINOGRAD_OUT.T, gradient, columns, 2), strict=True
        ):
            # A batched product is slower than separate ones.
            products.append(lax.dot_general(a.reshape(-1, inputs), b.reshape(-1, outputs), (((0,), (0,)), ((), ()))))
    stacked = jnp.stack(products).reshape(6, 6, inputs, outputs)
    return jnp.einsum("ai,bj,abco->ijco", WINOGRAD_KERNEL, WINOGRAD_KERNEL, stacked)


def _transform(matrix: np.ndarray, x: Array, tiles: int, axis: int) -> list[Array]:
    """matrix @ each window of x along the axis, one result per row of the matrix. Windows are 4 pixels apart."""
    places = [lax.slice_in_dim(x, i, i + 4 * (tiles - 1) + 1, 4, axis) for i in range(matrix.shape[1])]
    return [reduce(jnp.add, (float(k) * x for k, x in zip(row, places, strict=True) if k)) for row in matrix]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def max_pool(window, strides, padding, x: Array) -> Array:
    """See api.max_pool."""
    return plain.max_pool(window, strides, padding, x)


def _max_pool_forward(window, strides, padding, x):
    """The largest of the shifted images and its index, from which the backward pass needs no scatter."""
    y = plain.max_pool(window, strides, padding, x)
    taps = _taps(x, window, strides, padding, y.shape[1:3], -jnp.inf)
    dtype = jnp.uint8 if len(taps) < 256 else jnp.int32
    best, index = taps[0], jnp.zeros(y.shape, dtype)
    for i, tap in enumerate(taps[1:], 1):
        wins = (tap > best) | jnp.isnan(tap)
        best, index = jnp.where(wins, tap, best), jnp.where(wins, jnp.asarray(i, dtype), index)
    return y, (index, jnp.zeros((*x.shape[:3], 0), x.dtype))  # the second carries only the shape of x


def _max_pool_backward(window, strides, padding, saved, dy):
    """Pixels with equal remainders modulo the strides form a class: its gradient is a sum of shifted images."""
    index, size = saved
    _, height, width, _ = size.shape
    (down, right), (n, _, _, c) = strides, dy.shape
    rows, columns = -(-height // down), -(-width // right)  # pixels of each class, rounded up

    def share(place: int, h: int, w: int) -> Array:
        """The gradient that the windows h rows down and w columns right pass to their pixel at this place."""
        won = jnp.where(index == place, dy, 0).astype(jnp.float32)
        edges = ((0, 0, 0), (-h, rows + h - dy.shape[1], 0), (-w, columns + w - dy.shape[2], 0), (0, 0, 0))
        return lax.pad(won, jnp.float32(0), edges)  # negative edges crop

    def class_of(r: int, q: int) -> Array:
        total = jnp.zeros((n, rows, columns, c), jnp.float32)
        for i in range(window[0]):
            for j in range(window[1]):
                h, w = r + padding[0][0] - i, q + padding[1][0] - j
                if h % down == 0 and w % right == 0:
                    total = total + share(i * window[1] + j, h // down, w // right)
        return total.astype(dy.dtype)

    classes = [jnp.stack([class_of(r, q) for q in range(right)], 3) for r in range(down)]
    dx = jnp.stack(classes, 2).reshape(n, rows * down, columns * right, c)
    return (dx[:, :height, :width],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def batch_norm(epsilon, axis_name, relu, x, scale, bias, residual) -> tuple[Array, Array, Array]:
    """See api.batch_norm."""
    return _batch_norm_forward(epsilon, axis_name, relu, x, scale, bias, residual)[0]


def _batch_norm_forward(epsilon, axis_name, relu, x, scale, bias, residual):
    mean, var = plain.moments(x, axis_name)
    y = plain.normalise(x, mean, var, scale, bias, residual, epsilon, relu)
    return (y, mean, var), (x, y if relu else None, mean, var, scale, residual is not None)


def _batch_norm_backward(epsilon, axis_name, relu, saved, cotangents):
    x, y, mean, var, scale, has_residual = saved
    g = jnp.where(y > 0, cotangents[0], 0) if relu else cotangents[0]
    wide = g.astype(jnp.float32)
    deviation = lax.rsqrt(var + epsilon)
    normalised = (x.astype(jnp.float32) - mean) * deviation
    dbias, dscale = sum_rows(wide), sum_rows(wide * normalised)
    means = (dbias / (x.size // x.shape[-1]), dscale / (x.size // x.shape[-1]))
    if axis_name is not None:
        means = lax.pmean(means, axis_name)
    dx = (scale * deviation) * (wide - means[0] - normalised * means[1])
    return dx.astype(x.dtype), dscale, dbias, g if has_residual else None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def batch_norm_relu_max_pool(epsilon, axis_name, window, strides, padding, x, scale, bias):
    """See api.batch_norm_relu_max_pool."""
    normalised = batch_norm(epsilon, axis_name, True, x, scale, bias, None)
    y, mean, var = cast(tuple[Array, Array, Array], normalised)
    return max_pool(window, strides, padding, y), mean, var
