"""overlay: a map over a picture, against its formula at single pixels."""

import numpy as np
import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.reporting.heatmap import COLOURS, OPACITY, colours, overlay


def test_each_pixel_is_blended_by_its_value():
    picture = np.array([[0, 100], [200, 255]], np.uint8)
    values = np.array([[0, 1], [2, 4]])
    found = overlay(picture, values)
    assert (found.shape, found.dtype) == ((2, 2, 3), np.uint8)
    assert found[0, 0].tolist() == [0, 0, 0]  # value 0: the picture itself
    for i, j, share, colour in ((0, 1, 0.25, COLOURS[1]), (1, 0, 0.5, COLOURS[2]), (1, 1, 1, COLOURS[4])):
        expected = (1 - OPACITY * share) * picture[i, j] + OPACITY * share * 255 * colour
        np.testing.assert_allclose(found[i, j], expected, atol=0.51)


def test_forms_of_pictures_and_of_maps():
    rng = np.random.default_rng(0)
    gray, values = rng.integers(0, 256, (12, 16), np.uint8), rng.random((3, 4))
    expected = overlay(gray, values)
    colour = np.repeat(gray[..., None], 3, 2)
    for picture in (gray[..., None], colour, gray / 255, colour.astype(np.float32) / 255):
        np.testing.assert_allclose(overlay(picture, values * 7), expected, atol=1)  # the scale makes no difference
    np.testing.assert_array_equal(overlay(colour, np.zeros((3, 4))), colour)
    np.testing.assert_array_equal(overlay(gray, np.ones((1, 1))), overlay(gray, np.ones((5, 5))))


def test_the_map_keeps_its_place():
    values = np.zeros((4, 4))
    values[0, 3] = 1  # top right
    found = overlay(np.zeros((40, 80), np.uint8), values).sum(2).astype(int)
    assert found[:10, 60:].sum() > 0.5 * found.sum()
    assert found[20:].sum() == found[:, :40].sum() == 0


def test_colours_get_brighter_with_the_value():
    luma = colours(np.linspace(0, 1, 50)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > 0).all()


@pytest.mark.parametrize(
    ("picture", "values"), [((2, 2, 2), (2, 2)), ((2,), (2, 2)), ((2, 2), (2, 2, 1)), ((1, 2, 2, 3), (2, 2))]
)
def test_what_is_no_picture_or_map(picture, values):
    with pytest.raises(ConfigError, match=r"give \(H, W\), \(H, W, 1\) or \(H, W, 3\), and \(h, w\)"):
        overlay(np.zeros(picture), np.zeros(values))
