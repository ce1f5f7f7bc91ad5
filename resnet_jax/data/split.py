"""A seeded, stratified split of labels into training, validation and test rows."""

import numbers
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.data.dataset import Arrays
from resnet_jax.errors import DataError


class Rows(NamedTuple):
    """Row numbers of each part, in ascending order. A part that was not asked for is empty."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def stratified(
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    validation: float | None = 0,
    test: float | None = 0,
    seed: int = 0,
) -> Rows:
    """Rows of each part. Every class has about the same share of each part.

    validation, test: a share in (0, 1) of the images, a count of images (an int), or 0 or None for no part.
    A share gives each class within one image of share * count, at least one, so that the part's size may
    differ from share * N by a few images. A count is kept exactly. Each class keeps a training image.
    The same labels and arguments give the same rows, with every version of NumPy.
    Raises DataError if an argument is invalid or a class has fewer images than there are parts.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    shares = {"test": test, "validation": validation}
    asked = {name: value for name, share in shares.items() if (value := check_share(name, share, len(labels)))}
    _check_sum(asked, len(labels))
    _check_classes(counts, class_names, list(asked))
    order = _shuffled_by_class(labels, seed)
    starts = np.cumsum(counts) - counts
    taken = np.zeros_like(counts)
    rows = {}
    for i, (name, share) in enumerate(asked.items()):
        most = np.maximum(counts - taken - (len(asked) - i), 0)  # one image for each later part, and for training
        take = _by_share(counts, share, most) if share < 1 else _by_count(counts, int(share), most, name)
        rows[name] = _pick(order, starts + taken, take)
        taken += take
    rows["train"] = _pick(order, starts + taken, counts - taken)
    nothing = np.zeros(0, np.intp)
    return Rows(rows["train"], rows.get("validation", nothing), rows.get("test", nothing))


def cut(
    train: Arrays,
    class_names: Sequence[str],
    *,
    validation: float | None = 0,
    test: float | None = 0,
    seed: int = 0,
) -> dict[str, Arrays]:
    """The parts of `train` by name, only those asked for; see stratified. Without any, `train` itself, not copied."""
    rows = stratified(train.labels, class_names, validation=validation, test=test, seed=seed)
    if len(rows.train) == len(train.labels):
        return {"train": train}
    return {
        part: Arrays(train.images[index], train.labels[index]) for part, index in rows._asdict().items() if len(index)
    }


def check_share(name: str, share: float | None, total: int) -> float:
    """`share` itself, or 0 for None; DataError unless it is a share or a count that is possible for `total` images."""
    if share is None:
        return 0
    is_number = isinstance(share, numbers.Real) and not isinstance(share, bool)
    whole = isinstance(share, numbers.Integral)
    if not is_number or not (0 <= share < (total if whole else 1)):
        raise DataError(
            f"{name} {share}: give a share in (0, 1), a count of images (an int from 1 to {total - 1}), or 0 for none"
        )
    return int(share) if whole else float(share)


def _check_sum(asked: dict[str, float], total: int) -> None:
    held_out = sum(share * total if share < 1 else share for share in asked.values())
    if held_out >= total:
        text = " and ".join(f"{name} {share}" for name, share in asked.items())
        raise DataError(f"{text} leave none of the {total} images for training; use smaller parts")


def _check_classes(counts: np.ndarray, class_names: Sequence[str], asked: list[str]) -> None:
    parts = len(asked) + 1
    small = np.flatnonzero((counts > 0) & (counts < parts))
    if small.size:
        k = small[0]
        names = ", ".join(["train", *reversed(asked)])
        without = " and ".join(f"{name}=0" for name in asked)
        raise DataError(
            f"class {class_names[k]!r} has {counts[k]} image{'s' if counts[k] > 1 else ''}, fewer than the {parts} "
            f"parts of the split ({names}); add images to it, remove the class, or pass {without}"
        )


def _by_share(counts: np.ndarray, share: float, most: np.ndarray) -> np.ndarray:
    """Images per class: the quota rounded down, then up for the largest remainders until share * N is reached."""
    quota = counts * share
    take = np.minimum(np.maximum(np.floor(quota).astype(int), counts > 0), most)
    rest = round(share * counts.sum()) - take.sum()
    open_classes = [k for k in np.argsort(take - quota, kind="stable") if take[k] < min(quota[k], most[k])]
    take[open_classes[: max(rest, 0)]] += 1
    return take


def _by_count(counts: np.ndarray, total: int, most: np.ndarray, name: str) -> np.ndarray:
    """Images per class that add up to `total`, in proportion to `counts`, and at least one if that is possible."""
    if total > most.sum():
        raise DataError(
            f"{name} {total}: at most {most.sum()} images are possible, because every part needs each class"
        )
    quota = counts * total / counts.sum()
    take = np.minimum(np.maximum(np.floor(quota).astype(int), counts > 0), most)
    if take.sum() > total:  # too few images for one of each class
        take = np.minimum(np.floor(quota).astype(int), most)
    while rest := total - take.sum():
        open_classes = [k for k in np.argsort(take - quota, kind="stable") if take[k] < most[k]]
        take[open_classes[:rest]] += 1
    return take


def _shuffled_by_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers sorted by label, in random order within a label.

    NumPy keeps the raw numbers of PCG64 the same in every version, but not the result of Generator.permutation.
    """
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise DataError(f"seed {seed!r}: give a whole number from 0")
    keys = np.random.PCG64(int(seed)).random_raw(len(labels))
    return np.lexsort((keys, labels))


def _pick(order: np.ndarray, starts: np.ndarray, take: np.ndarray) -> np.ndarray:
    """For each class k, take[k] rows of `order` from starts[k] on; all of them in ascending order."""
    pieces = [order[start : start + count] for start, count in zip(starts, take, strict=True)]
    return np.sort(np.concatenate(pieces))
