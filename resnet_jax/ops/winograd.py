"""Which convolutions take Winograd's form in the native library, and with which tiles.

The form needs 36 products for a tile of 4x4 output pixels, where the direct convolution needs 144, or 25 for 3x3
pixels, where it needs 81. `tiles` chooses by shape and instruction set, so that a run has the same bits each time.
Source: arXiv:1509.09308, section 4.

The arithmetic is float32, also for images in bfloat16, which are rounded once, when the output is stored.
docs/benchmarks.md has the measurements behind the rule: every pass that takes the form is faster than oneDNN's direct
convolution, 1.1 to 5.3 times (AVX2 and AVX-512, the 3x3 layers of resnet18 and resnet20).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

PANEL = 16  # the native kernels take channels in such panels
SIZES = (4, 3)  # output pixels of a tile along H and W; 4 comes first where both need as many products
TAPS = 1  # the direct convolution as one product of matrices for each tap of the kernel; for weight gradients only
TAPS_PIXELS = 36  # with more pixels in an image TAPS is not faster than oneDNN, except for strided kernels with AVX2
MIN_TILES = 64  # in a batch; with fewer tiles the transform of the kernel takes longer than the products save
# The same without that transform, in float32. One image of 14x14x256 has 16 tiles and took 1.7 ms in place of 2.5; one
# of 7x7x512 has 4 and took 3.9 ms in place of 2.3 (2 cores of a Zen 4, medians).
KEPT_TILES = 16
MIN_GRADIENT = 32  # channels, for weight gradients with AVX-512: with 16 channels oneDNN is faster
# In bfloat16 oneDNN is faster with fewer channels, and on smaller images it is as fast, except for weight gradients.
BFLOAT16_CHANNELS, BFLOAT16_SIDE = 64, 12
AVX2 = 3  # of select.simd_level()


class Tiles(NamedTuple):
    """The size of tiles of each pass of a convolution. 0 stands for oneDNN's direct convolution."""

    forward: int
    input_gradient: int
    weight_gradient: int


DIRECT = Tiles(0, 0, 0)


def inference_tile(strides, padding, groups, x: Array, kernel: Array, level: int) -> int:
    """The tile of the forward pass in inference, where the native library keeps the transformed kernel of few images.

    In bfloat16 few tiles are slower all the same, since that kernel has eight times as many bytes as oneDNN's.
    """
    least = KEPT_TILES if x.dtype == jnp.float32 else MIN_TILES
    return tiles(strides, padding, groups, x, kernel, level, least).forward


def tiles(strides, padding, groups, x: Array, kernel: Array, level: int, least: int = MIN_TILES) -> Tiles:
    """x: (N, H, W, C); kernel: (kh, kw, C / groups, O); level: of the instruction set -> the tiles of each pass.

    least: the number of tiles of the batch from which on the form is faster.
    """
    channels = kernel.shape[2:]
    if groups != 1 or any(count % PANEL for count in channels):
        return DIRECT
    size = x.shape[1:3]
    out = tuple(
        (n + low + high - side) // step + 1
        for n, side, step, (low, high) in zip(size, kernel.shape[:2], strides, padding, strict=True)
    )
    stride_1 = kernel.shape[:2] == (3, 3) and strides == (1, 1) and all(max(pair) <= 2 for pair in padding)
    if not stride_1 or min(*size, *out) < min(SIZES):
        return Tiles(0, 0, TAPS) if _by_taps(x, kernel.shape[:2], strides, out, level) else DIRECT
    forward, backward = (_tile(x.shape[0], pixels, least) for pixels in (out, size))
    gradient = forward if level == AVX2 or min(channels) >= MIN_GRADIENT else 0
    if x.dtype == jnp.float32:
        return Tiles(forward, backward, gradient)
    if min(channels) < BFLOAT16_CHANNELS:
        return DIRECT
    return Tiles(0, 0, gradient) if min(*size, *out) < BFLOAT16_SIDE else Tiles(forward, backward, gradient)


def _by_taps(x: Array, window, strides, out, level: int) -> bool:
    """Whether the weight gradient is faster as one product for each tap; out: (H', W') of the output."""
    small = out[0] * out[1] <= TAPS_PIXELS
    if x.shape[0] * out[0] * out[1] < MIN_TILES or x.dtype != jnp.float32:
        return False
    if level > AVX2:
        return window == (3, 3) and max(strides) > 1 and small
    return window == (3, 3) or (window == (1, 1) and small)


def _tile(images: int, pixels: tuple[int, ...], least: int) -> int:
    """The size of tiles that needs the fewest products; 0 with too few tiles."""

    def tiles_of(tile: int) -> int:
        return -(-pixels[0] // tile) * -(-pixels[1] // tile)

    best = min(SIZES, key=lambda tile: tiles_of(tile) * (tile + 2) ** 2)
    return best if images * tiles_of(best) >= least else 0
