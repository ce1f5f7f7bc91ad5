"""Charts: round numbers on the axes, and coordinates that follow from them."""

import math

import pytest

from resnet_jax.reporting.charts import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Series,
    curve,
    line_chart,
    reliability_chart,
    ticks,
)
from resnet_jax.reporting.figures import Bin


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.13, 2.4, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0.81, 0.93, [0.8, 0.85, 0.9, 0.95]),
        (1e-5, 9e-5, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
        (3.0, 3.0, [3.0, 4.0]),
        (0.0, 0.0, [0.0, 0.2]),
        (-2.0, 7.0, [-2, 0, 2, 4, 6, 8]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_a_line_goes_through_the_corners_of_its_axes():
    chart = line_chart("Loss", [Series("train", [(1, 2.0), (3, 1.0), (5, 0.0)])])
    assert chart is not None
    middle = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    assert chart.lines[0].dots == ((LEFT, TOP), middle, (RIGHT, BOTTOM))
    assert chart.lines[0].points == f"{LEFT},{TOP} {middle[0]:g},{middle[1]:g} {RIGHT},{BOTTOM}"
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3", "4", "5"]
    assert chart.description == "Loss by epoch: train from 2 to 0."


def test_one_epoch_and_values_that_are_not_finite():
    chart = line_chart("Loss", [Series("train", [(1, 2.5)]), Series("test", [(1, math.nan)])])
    assert chart is not None
    assert [line.name for line in chart.lines] == ["train"]
    assert [tick.label for tick in chart.x_ticks] == ["1"]
    assert line_chart("Loss", [Series("train", [(1, math.inf)])]) is None
    assert line_chart("Loss", []) is None


def test_a_long_line_is_thinned_and_keeps_its_ends():
    chart = line_chart("Loss", [Series("train", [(i, i / 7777) for i in range(7778)])])
    assert chart is not None
    points = chart.lines[0].points.split()
    assert len(points) <= MOST_POINTS
    assert (points[0], points[-1]) == (f"{LEFT},{BOTTOM}", f"{RIGHT},{TOP}")
    assert chart.lines[0].dots == ()


def test_a_column_of_the_rows():
    rows = [{"epoch": 1, "loss": 2}, {"epoch": 2}, {"epoch": 3, "loss": "x"}, {"epoch": 4, "loss": True}, {"loss": 0.5}]
    assert curve(rows, "loss", "train") == Series("train", [(1.0, 2.0), (5.0, 0.5)])


def test_the_bars_of_the_reliability_diagram():
    """Half of a bin of confidence 0.5 to 1 is right: half the height, half the width, less a gap of 2."""
    chart = reliability_chart([Bin(0, 0.5, 0, None, None), Bin(0.5, 1.0, 4, 0.75, 0.5)])
    (bar,) = chart.bars
    assert (bar.x, bar.width) == ((LEFT + RIGHT) / 2 + 1, (RIGHT - LEFT) / 2 - 2)
    assert (bar.y, bar.height) == ((TOP + BOTTOM) / 2, (BOTTOM - TOP) / 2)
