"""Which convolutions take Winograd's form in the native library, and with which tiles.

The form needs 36 products for a tile of 4x4 output pixels, where the direct convolution needs 144 (25 for 81 with
3x3 pixels). It is chosen by shape only, so that a run has the same bits each time.
Source: arXiv:1509.09308, section 4.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

PANEL = 16  # the native kernels take channels in such panels
SIZES = (4, 3)  # output pixels of a tile along H and W; 4 comes first where both need as many products


class Tiles(NamedTuple):
    """The size of tiles of each pass of a convolution. 0 stands for the direct convolution."""

    forward: int
    input_gradient: int
    weight_gradient: int


DIRECT = Tiles(0, 0, 0)


def tiles(strides, padding, groups, x: Array, kernel: Array) -> Tiles:
    """x: (N, H, W, C); kernel: (kh, kw, C / groups, O) -> the tiles of each pass."""
    takes = (
        x.dtype == jnp.float32
        and (kernel.shape[:2], strides, groups) == ((3, 3), (1, 1), 1)
        and kernel.shape[2] % PANEL == kernel.shape[3] % PANEL == 0
        and all(max(pair) <= 2 for pair in padding)
    )
    if not takes:
        return DIRECT
    n, height, width, _ = x.shape
    out = tuple(size + low + high - 2 for size, (low, high) in zip((height, width), padding, strict=True))
    return Tiles(_tile(n, *out), _tile(n, height, width), _tile(n, *out))


def _tile(n: int, height: int, width: int) -> int:
    def products(tile: int) -> int:
        return -(-height // tile) * -(-width // tile) * (tile + 2) ** 2

    return min(SIZES, key=products)
