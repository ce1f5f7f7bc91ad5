"""The picture of a confusion matrix, by the colours of its cells."""

import numpy as np
import pytest

from resnet_jax.reporting.confusion_picture import DARK, LIGHT, confusion_picture

MARGIN, CELL = 112, 40


def corner(picture: np.ndarray, row: int, column: int) -> tuple[int, ...]:
    """The colour of a cell at its upper left corner, where no count is written."""
    return tuple(picture[MARGIN + row * CELL + 1, MARGIN + column * CELL + 1].tolist())


def test_rows_are_true_classes_and_dark_is_a_large_share():
    picture = confusion_picture(np.array([[30, 0], [5, 5]]), ("cat", "a very long name of a class"))
    assert picture.shape == (MARGIN + 2 * CELL, MARGIN + 2 * CELL, 3)
    assert picture.dtype == np.uint8
    assert corner(picture, 0, 0) == DARK
    assert corner(picture, 0, 1) == LIGHT
    assert corner(picture, 1, 0) == corner(picture, 1, 1)
    assert LIGHT > corner(picture, 1, 0) > DARK


def test_names_and_counts_are_written():
    plain = confusion_picture(np.array([[3, 0], [0, 3]]), ("", ""))
    named = confusion_picture(np.array([[3, 0], [0, 3]]), ("cat", "dog"))
    changed = (plain != named).any(2)
    assert changed[:MARGIN, MARGIN:].any()
    assert changed[MARGIN:, :MARGIN].any()
    assert not changed[MARGIN:, MARGIN:].any()
    four = confusion_picture(np.array([[4, 0], [0, 3]]), ("cat", "dog"))
    assert (named != four).any(2)[MARGIN : MARGIN + CELL, MARGIN : MARGIN + CELL].any()  # the shares are the same


def test_a_class_without_images_is_white():
    assert corner(confusion_picture(np.array([[0, 0], [0, 1]]), ("a", "b")), 0, 0) == LIGHT


@pytest.mark.parametrize("classes", [1, 21, 61, 1000])
def test_any_number_of_classes(classes):
    picture = confusion_picture(np.eye(classes, dtype=int), [f"class {i}" for i in range(classes)])
    assert picture.shape[0] == picture.shape[1] <= 1100
    assert tuple(picture[-1, -1].tolist()) == DARK
