"""Two-dimensional convolution."""

import jax
from jax import lax


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    groups: int = 1,
) -> jax.Array:
    """Cross-correlate x with kernel and add bias, in x's dtype.

    x: (N, H, W, C); kernel: (kh, kw, C / groups, O); bias: (O,) -> (N, H', W', O).
    padding is explicit, (low, high) for each axis: "SAME" pads (0, 1) where PyTorch pads (1, 1) at stride 2.
    """
    y = lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=strides,
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y if bias is None else y + bias.astype(x.dtype)
