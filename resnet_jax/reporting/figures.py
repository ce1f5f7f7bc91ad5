"""The figures of an evaluation: confusion, precision and recall, calibration, mistakes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15  # of the reliability diagram, as in arXiv:1706.04599


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """One class. count: its images. A share without a denominator is None: no image was predicted, or there is none."""

    name: str
    count: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclasses.dataclass(frozen=True)
class Bin:
    """Predictions with a confidence in (low, high]. confidence, accuracy: their means, None for an empty bin."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Figures:
    """What an evaluation found.

    loss: the mean cross-entropy in nats, at most 87 for an image: a float32 probability is at least 1.2e-38. confusion:
    (classes, classes), rows are true classes, columns predicted ones. ece: the expected calibration error over the bins
    (arXiv:1706.04599, equation 3). mistakes: the images that were predicted wrong, as numbers in the part, the most
    confident first.
    """

    count: int
    correct: int
    loss: float
    confusion: np.ndarray
    classes: tuple[ClassFigures, ...]
    bins: tuple[Bin, ...]
    ece: float
    mistakes: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of images whose most probable class is the label's."""
        return self.correct / self.count

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the mistakes are left out."""
        held = dataclasses.asdict(self) | {"accuracy": self.accuracy, "confusion": self.confusion.tolist()}
        del held["mistakes"]
        return held


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (num_classes, num_classes): rows are true classes, columns predicted ones."""
    pairs = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def figures(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figures:
    """The figures of probabilities (N, classes) against labels (N,), N at least 1."""
    rows, labels = np.arange(len(labels)), labels.astype(np.int64)
    predicted = probabilities.argmax(1)
    confidence, right = probabilities[rows, predicted].astype(np.float64), predicted == labels
    confusion = confusion_matrix(predicted, labels, len(class_names))
    wrong = np.flatnonzero(~right)
    bins = reliability(confidence, right)
    return Figures(
        count=len(labels),
        correct=int(right.sum()),
        loss=float(
            -np.log(np.maximum(probabilities[rows, labels].astype(np.float64), np.finfo(np.float32).tiny)).mean()
        ),
        confusion=confusion,
        classes=tuple(_class_figures(confusion, i, name) for i, name in enumerate(class_names)),
        bins=bins,
        ece=sum(
            b.count * abs(b.accuracy - b.confidence)
            for b in bins
            if b.accuracy is not None and b.confidence is not None
        )
        / len(labels),
        mistakes=wrong[np.argsort(-confidence[wrong], kind="stable")],
    )


def _class_figures(confusion: np.ndarray, i: int, name: str) -> ClassFigures:
    hits, true, predicted = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
    return ClassFigures(name, true, _share(hits, predicted), _share(hits, true), _share(2 * hits, true + predicted))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[Bin, ...]:
    """The bins of the reliability diagram, of equal width, over confidence (N,) and right (N,) bool."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    held = []
    for i in range(bins):
        inside = place == i
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (None, None)
        held.append(Bin(float(edges[i]), float(edges[i + 1]), count, *means))
    return tuple(held)


def confusions(figures: Figures, most: int = 10) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: true class, predicted class, images, share of the true class."""
    matrix, names = figures.confusion, [one.name for one in figures.classes]
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j and matrix[i, j]]
    pairs = sorted(pairs, key=lambda pair: -matrix[pair])[:most]
    return [(names[i], names[j], int(matrix[i, j]), float(matrix[i, j] / matrix[i].sum())) for i, j in pairs]
