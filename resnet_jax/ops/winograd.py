"""Which convolutions take Winograd's form in the native library, and with which tiles.

The form needs 36 products for a tile of 4x4 output pixels, where the direct convolution needs 144, or 25 for 3x3
pixels, where it needs 81. `tiles` chooses by shape and instruction set, so that a run has the same bits each time.
Source: arXiv:1509.09308, section 4.

Measured on 2 cores of a Zen 3 with AVX2 (float32, medians of 8), times as fast as oneDNN's direct convolution: forward
and input gradient 1.5 to 2.7, weight gradient 1.7 to 5.3, for all 3x3 layers of resnet18 at 96x96 and resnet20 at 28x28
with batch 128. docs/benchmarks.md has the table.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

PANEL = 16  # the native kernels take channels in such panels
SIZES = (4, 3)  # output pixels of a tile along H and W; 4 comes first where both need as many products
TAPS = 1  # the direct convolution as one product of matrices for each tap of the kernel; for weight gradients only
# With AVX2, TAPS is 1.3 to 2.9 times as fast as oneDNN for 3x3 kernels of stride 2, and 1.4 to 2.0 times for 1x1
# kernels on at most 6x6 pixels; on more pixels it is as fast (one core of a Zen 3, medians of 10).
TAPS_PIXELS = 36
AVX2 = 3  # of select.simd_level()
# On AVX-512 a prototype was 2.1 to 2.8 times as fast as oneDNN from 12x12 pixels on, and not faster for 6x6 and 3x3
# (Zen 4, forward). These kernels, and TAPS, are not measured there.
AVX512_PIXELS = 12


class Tiles(NamedTuple):
    """The size of tiles of each pass of a convolution. 0 stands for oneDNN's direct convolution."""

    forward: int
    input_gradient: int
    weight_gradient: int


DIRECT = Tiles(0, 0, 0)


def tiles(strides, padding, groups, x: Array, kernel: Array, level: int) -> Tiles:
    """x: (N, H, W, C); kernel: (kh, kw, C / groups, O); level: of the instruction set -> the tiles of each pass."""
    if x.dtype != jnp.float32 or groups != 1 or kernel.shape[2] % PANEL or kernel.shape[3] % PANEL:
        return DIRECT
    size = x.shape[1:3]
    out = tuple(
        (n + low + high - side) // step + 1
        for n, side, step, (low, high) in zip(size, kernel.shape[:2], strides, padding, strict=True)
    )
    stride_1 = kernel.shape[:2] == (3, 3) and strides == (1, 1) and all(max(pair) <= 2 for pair in padding)
    if stride_1 and min(*size, *out) >= (AVX512_PIXELS if level > AVX2 else min(SIZES)):
        return Tiles(_tile(*out), _tile(*size), _tile(*out))
    small = out[0] * out[1] <= TAPS_PIXELS
    taps = level == AVX2 and (kernel.shape[:2] == (3, 3) or (kernel.shape[:2] == (1, 1) and small))
    return Tiles(0, 0, TAPS) if taps else DIRECT


def _tile(height: int, width: int) -> int:
    """The size of tiles that needs the fewest products."""

    def products(tile: int) -> int:
        return -(-height // tile) * -(-width // tile) * (tile + 2) ** 2

    return min(SIZES, key=products)
