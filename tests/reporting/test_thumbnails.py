"""Pictures in data URIs, decoded again."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from resnet_jax.reporting.thumbnails import SIDE, data_uri

RNG = np.random.default_rng(0)


def decoded(uri: str) -> np.ndarray:
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_picture_keeps_its_pixels(channels):
    picture = RNG.integers(0, 256, (28, 20, channels)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(data_uri(picture)).reshape(picture.shape), picture)
    np.testing.assert_array_equal(decoded(data_uri(picture / np.float32(255))).reshape(picture.shape), picture)


def test_a_large_picture_is_scaled_down():
    assert decoded(data_uri(np.full((200, 400, 3), 7, np.uint8))).shape == (SIDE // 2, SIDE, 3)
    assert (decoded(data_uri(np.full((200, 400, 3), 7, np.uint8))) == 7).all()


def test_46_pictures_of_noise_leave_room_in_2_mb():
    noise = RNG.integers(0, 256, (224, 224, 3)).astype(np.uint8)
    assert 46 * len(data_uri(noise)) < 1_500_000
