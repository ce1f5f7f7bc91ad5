"""Pictures inside a page: PNG in data URIs."""

import base64
import io

import numpy as np
from PIL import Image

SIDE = 80  # pixels at most: 46 pictures of noise in colour then take 1.2 MB


def data_uri(picture: np.ndarray, side: int = SIDE) -> str:
    """A picture (H, W, C), uint8 or floating in [0, 1] with C = 1 or 3, as the data URI of a PNG.

    A larger picture is scaled down to `side` pixels; a smaller one keeps its pixels.
    """
    pixels = picture if picture.dtype == np.uint8 else np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
