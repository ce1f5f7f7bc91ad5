"""The operations that models call. Each checks its operands and calls an implementation."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from resnet_jax.ops import native, plain, xla_cpu, xla_gpu_tpu
from resnet_jax.ops.select import by_platform, native_convolves

Pair = tuple[int, ...]  # two numbers, for H and W
Padding = tuple[Pair, ...]
NO_PADDING: Padding = ((0, 0), (0, 0))


def _native_takes(x: Array, *others: Array | None) -> bool:
    """The native kernels support non-empty float32 and bfloat16 images."""
    return x.dtype in (jnp.float32, jnp.bfloat16) and all(a is None or a.size > 0 for a in (x, *others))


def _float32(*parameters: Array) -> bool:
    return all(parameter.dtype == jnp.float32 for parameter in parameters)


def _check_images(operation: str, x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"{operation}: x has shape {x.shape}; use (N, H, W, C)")


def _check_window(operation: str, x: Array, window: Pair, strides: Pair, padding: Padding) -> None:
    """Raise ValueError for an invalid window, before anything is compiled."""
    for axis, size, side, step, (low, high) in zip("HW", x.shape[1:3], window, strides, padding, strict=True):
        if step < 1 or low < 0 or high < 0:
            raise ValueError(f"{operation}: strides {strides} must be positive and padding {padding} not negative")
        if size + low + high < side:
            raise ValueError(
                f"{operation}: {axis} of x {x.shape} with padding {(low, high)} is smaller than the window "
                f"{side}; use larger images or more padding"
            )


def conv(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    strides: Pair = (1, 1),
    padding: Padding = NO_PADDING,
    groups: int = 1,
) -> Array:
    """Convolution in x's type, summed in float32 (float64 for float64). Gradients have the types of their operands.

    x: (N, H, W, C); kernel: (kh, kw, C / groups, O); bias: (O,) or None;
    padding: ((top, bottom), (left, right)).
    Returns (N, H', W', O), H' = (H + top + bottom - kh) // strides[0] + 1.
    """
    _check_conv(x, kernel, bias, strides, padding, groups)
    how = (tuple(strides), tuple(map(tuple, padding)), groups)
    return by_platform(
        partial(native.conv, *how) if _native_takes(x, kernel) and native_convolves(x.dtype) else None,
        partial(xla_cpu.conv, *how),
        partial(xla_gpu_tpu.conv, *how),
        partial(plain.conv, *how),
        x,
        kernel,
        bias,
    )


def conv_add_relu(
    x: Array,
    kernel: Array,
    bias: Array,
    *,
    residual: Array | None = None,
    relu: bool = False,
    strides: Pair = (1, 1),
    padding: Padding = NO_PADDING,
    groups: int = 1,
    digest: Array | None = None,
) -> Array:
    """relu?(conv(x, kernel) + bias + residual?): a layer of a network whose batch norms are folded into kernels.

    The sum is computed in float32 (float64 for float64) and then rounded to x's type. The ReLU of the native
    implementation may return 0 for NaN. residual: like the result.
    digest: uint32 numbers that no other kernel has. With it, the native implementation keeps the kernel in the layout
    that it computes with, if the images are few: at most 1 GiB of all kernels in the process. For the other operands
    and the shapes see `conv`.
    """
    _check_conv(x, kernel, bias, strides, padding, groups)
    if residual is not None:
        y = jax.eval_shape(partial(conv, strides=strides, padding=padding, groups=groups), x, kernel)
        if (residual.shape, residual.dtype) != (y.shape, y.dtype):
            raise ValueError(f"conv_add_relu: residual {residual.dtype}{residual.shape} must be {y.dtype}{y.shape}")
    if digest is not None and (digest.dtype != jnp.uint32 or digest.ndim != 1):
        raise ValueError(f"conv_add_relu: digest {digest.dtype}{digest.shape} must be uint32(n,)")
    how = (relu, tuple(strides), tuple(map(tuple, padding)), groups)
    operands = (x, kernel, bias, residual, digest)
    return by_platform(
        partial(native.conv_add_relu, *how) if _native_takes(x, kernel) and native_convolves(x.dtype) else None,
        partial(xla_cpu.conv_add_relu, *how),
        partial(plain.conv_add_relu, *how),
        partial(plain.conv_add_relu, *how),
        *operands,
    )


def _check_conv(x: Array, kernel: Array, bias: Array | None, strides: Pair, padding: Padding, groups: int) -> None:
    _check_images("conv", x)
    if kernel.ndim != 4 or kernel.shape[2] * groups != x.shape[3] or kernel.shape[3] % groups:
        raise ValueError(
            f"conv: kernel {kernel.shape} does not fit x {x.shape} with groups {groups}; use (kh, kw, C / groups, O)"
        )
    if bias is not None and bias.shape != kernel.shape[3:]:
        raise ValueError(f"conv: bias {bias.shape} does not fit kernel {kernel.shape}; use ({kernel.shape[3]},)")
    _check_window("conv", x, kernel.shape[:2], strides, padding)


def max_pool(x: Array, window: Pair = (3, 3), strides: Pair = (2, 2), padding: Padding = ((1, 1), (1, 1))) -> Array:
    """The largest value of each window, padding ignored. The first of several equal values gets the gradient.

    x: (N, H, W, C) -> (N, H', W', C), H' = (H + top + bottom - window[0]) // strides[0] + 1.
    """
    _check_images("max_pool", x)
    _check_window("max_pool", x, window, strides, padding)
    how = (tuple(window), tuple(strides), tuple(map(tuple, padding)))
    return by_platform(
        partial(native.max_pool, *how) if _native_pools(x, *how) else None,
        partial(xla_cpu.max_pool, *how),
        partial(xla_gpu_tpu.max_pool, *how),
        partial(plain.max_pool, *how),
        x,
    )


def _native_pools(x: Array, window: Pair, strides: Pair, padding: Padding) -> bool:
    """Each window must contain a pixel, and at most 254 of them, as the index is stored in a byte."""
    fits = all(low < side and high < side for side, (low, high) in zip(window, padding, strict=True))
    return _native_takes(x) and fits and window[0] * window[1] < 255


def batch_norm(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    epsilon: float = 1e-5,
    axis_name: str | None = None,
    relu: bool = False,
    residual: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Batch norm with the statistics of the batch.

    y = relu?((x - mean) / sqrt(var + epsilon) * scale + bias + residual?)

    x, residual: (N, H, W, C) of one type; scale, bias: (C,) float32. mean and var (biased) are computed over N, H
    and W in float32 (float64 if x is), and over all devices of the mapped axis `axis_name` if given.
    Returns y in x's type, and mean, var (C,) without gradients.
    Source: arXiv:1502.03167, algorithm 1.
    """
    _check_channels("batch_norm", x, scale, bias)
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(f"batch_norm: residual {residual.dtype}{residual.shape} must be like x, {x.dtype}{x.shape}")
    how = (epsilon, axis_name, relu)
    y, mean, var = by_platform(
        partial(native.batch_norm, *how) if _native_takes(x) and _float32(scale, bias) else None,
        partial(xla_cpu.batch_norm, *how),
        partial(xla_gpu_tpu.batch_norm, *how),
        partial(plain.batch_norm, *how),
        x,
        scale,
        bias,
        residual,
    )
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def batch_norm_relu_max_pool(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    epsilon: float = 1e-5,
    axis_name: str | None = None,
    window: Pair = (3, 3),
    strides: Pair = (2, 2),
    padding: Padding = ((1, 1), (1, 1)),
) -> tuple[Array, Array, Array]:
    """`max_pool` of `batch_norm(..., relu=True)`, the layers after the first convolution of a ResNet.

    They are one operation because the normalised images are the largest array of the network. The native
    implementation never stores them. x: (N, H, W, C) -> y: (N, H', W', C), and mean, var (C,).
    """
    _check_channels("batch_norm_relu_max_pool", x, scale, bias)
    _check_window("batch_norm_relu_max_pool", x, window, strides, padding)
    how = (epsilon, axis_name, tuple(window), tuple(strides), tuple(map(tuple, padding)))
    y, mean, var = by_platform(
        partial(native.batch_norm_relu_max_pool, *how)
        if _native_pools(x, *how[2:]) and _float32(scale, bias)
        else None,
        partial(xla_cpu.batch_norm_relu_max_pool, *how),
        partial(xla_gpu_tpu.batch_norm_relu_max_pool, *how),
        partial(plain.batch_norm_relu_max_pool, *how),
        x,
        scale,
        bias,
    )
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def batch_norm_inference(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = 1e-5,
    relu: bool = False,
    residual: Array | None = None,
) -> Array:
    """`batch_norm` with given statistics, (C,) float32 each. XLA fuses it well on every platform."""
    _check_channels("batch_norm_inference", x, scale, bias)
    return plain.normalise(x, mean, var, scale, bias, residual, epsilon, relu)


def _check_channels(operation: str, x: Array, scale: Array, bias: Array) -> None:
    _check_images(operation, x)
    if not scale.shape == bias.shape == x.shape[3:]:
        raise ValueError(
            f"{operation}: scale {scale.shape} and bias {bias.shape} must be {x.shape[3:]}, as x is {x.shape}"
        )
