"""The figures of an evaluation against values computed by hand."""

import json

import numpy as np
import pytest

from resnet_jax.reporting.figures import confusion_matrix, figures, reliability

PROBABILITIES = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.6, 0.4, 0], [0.05, 0.95, 0]], np.float32)
LABELS = np.array([0, 1, 1, 0], np.uint8)


def test_counts_and_loss():
    found = figures(PROBABILITIES, LABELS, ("a", "b", "c"))
    assert (found.count, found.correct, found.accuracy) == (4, 2, 0.5)
    assert found.loss == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.05]).mean(), rel=1e-6)
    assert found.confusion.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found.mistakes.tolist() == [3, 2]  # 0.95 before 0.6


def test_a_class_without_images_and_predictions_has_no_shares():
    a, _, c = figures(PROBABILITIES, LABELS, ("a", "b", "c")).classes
    assert (a.count, a.precision, a.recall, a.f1) == (2, 0.5, 0.5, 0.5)
    assert (c.count, c.precision, c.recall, c.f1) == (0, None, None, None)


def test_calibration_by_hand():
    found = figures(PROBABILITIES, LABELS, ("a", "b", "c"))
    assert found.ece == pytest.approx((abs(1 - 0.9) + abs(1 - 0.8) + 0.6 + 0.95) / 4, abs=1e-6)
    assert sum(b.count for b in found.bins) == 4


def test_the_bins_include_their_upper_edge():
    bins = reliability(np.array([0.5, 0.500001, 0.0, 1.0]), np.array([True, False, True, True]), bins=2)
    assert [b.count for b in bins] == [2, 2]
    assert [b.accuracy for b in bins] == [1.0, 0.5]


def test_a_probability_of_zero_has_a_finite_loss():
    assert np.isfinite(figures(np.array([[1.0, 0.0]], np.float32), np.array([1]), "ab").loss)


def test_confusion_of_small_integers_does_not_overflow():
    labels = np.full(3, 199, np.uint8)
    assert confusion_matrix(labels.astype(np.int64), labels, 200)[199, 199] == 3


def test_json():
    held = json.loads(json.dumps(figures(PROBABILITIES, LABELS, ("a", "b", "c")).as_dict()))
    assert held["accuracy"] == 0.5
    assert held["classes"][2]["precision"] is None
