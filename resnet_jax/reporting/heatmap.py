"""A map of numbers, such as one of grad_cam, as colours over a picture."""

import numpy as np
from PIL import Image

from resnet_jax.errors import ConfigError

# black, violet, red, orange, yellow: the order of brightness is that of the numbers, for readers who see no colours
COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32) / 255
OPACITY = 0.75  # of the colour where the map has its maximum


def overlay(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lay a map over a picture: the larger the value, the brighter and the more opaque is its colour.

    picture: (H, W), (H, W, 1) or (H, W, 3), uint8, or floating in [0, 1]. values: (h, w), not negative, of any size:
    they are resized to the picture (bilinear) and divided by their maximum. Where they are 0, the picture stays as it
    is. Returns (H, W, 3) uint8. ConfigError for other shapes.
    """
    picture, values = np.asarray(picture), np.asarray(values, np.float32)
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim != 3 or picture.shape[-1] not in (1, 3) or values.ndim != 2:
        given = f"picture {picture.shape} and values {values.shape}"
        raise ConfigError(f"overlay: {given}; give (H, W), (H, W, 1) or (H, W, 3), and (h, w)")
    scale = 255 if picture.dtype == np.uint8 else 1
    base = np.broadcast_to(picture.astype(np.float32) / scale, (*picture.shape[:2], 3))
    size = picture.shape[1], picture.shape[0]
    share = np.asarray(Image.fromarray(values / max(values.max(), 1e-30)).resize(size, Image.Resampling.BILINEAR))
    opacity = OPACITY * share[..., None]
    return np.rint(255 * ((1 - opacity) * base + opacity * colours(share))).astype(np.uint8)


def colours(share: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] of any shape -> RGB (..., 3) in [0, 1], interpolated between COLOURS."""
    places = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(share, places, channel) for channel in COLOURS.T], -1)
