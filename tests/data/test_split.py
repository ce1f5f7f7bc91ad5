import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.data.dataset import Arrays
from resnet_jax.data.split import cut, stratified
from resnet_jax.errors import DataError

SHARES = st.floats(0, 0.4, allow_subnormal=False)


@settings(deadline=None)
@given(st.lists(st.integers(3, 60), min_size=2, max_size=8), SHARES, SHARES, st.integers(0, 2**32))
def test_shares_are_disjoint_complete_and_stratified_within_one(counts, validation, test, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    names = [str(k) for k in range(len(counts))]
    rows = stratified(labels, names, validation=validation, test=test, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(labels)))
    for part, share in zip(rows[1:], (validation, test), strict=True):
        found = np.bincount(labels[part], minlength=len(counts))
        assert (np.diff(part) > 0).all()
        assert (found.max() == 0) if share == 0 else (found.min() >= 1)
        assert np.abs(found - np.multiply(counts, share)).max() <= 1


@settings(deadline=None)
@given(st.lists(st.integers(3, 60), min_size=2, max_size=8), st.data())
def test_counts_are_exact_and_every_part_has_every_class_where_that_is_possible(counts, data):
    labels = np.repeat(np.arange(len(counts)), counts)
    most = len(labels) - 2 * len(counts)
    validation = data.draw(st.integers(1, most))
    test = data.draw(st.integers(1, max(1, most - validation)))
    if validation + test > most:
        return
    rows = stratified(labels, [str(k) for k in range(len(counts))], validation=validation, test=test)
    assert (len(rows.validation), len(rows.test)) == (validation, test)
    assert np.bincount(labels[rows.train], minlength=len(counts)).min() >= 1
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(labels)))


def test_equal_classes_are_split_equally():
    labels = np.tile(np.arange(10), 600)
    rows = stratified(labels, list("abcdefghij"), validation=600, test=0.2)
    assert np.bincount(labels[rows.validation]).tolist() == [60] * 10
    assert np.bincount(labels[rows.test]).tolist() == [120] * 10


def test_the_seed_decides_and_the_rows_are_frozen():
    """The rows of 12 labels, worked out from PCG64(0)'s raw numbers: another split would mix old and new runs."""
    labels = np.arange(12) % 2
    raw = np.random.PCG64(0).random_raw(12)
    expected = [rows[np.argsort(raw[rows])[:2]] for rows in (np.arange(0, 12, 2), np.arange(1, 12, 2))]
    rows = stratified(labels, ["a", "b"], validation=4)
    assert rows.validation.tolist() == np.sort(np.concatenate(expected)).tolist() == [2, 3, 8, 11]
    assert stratified(labels, ["a", "b"], validation=4).validation.tolist() == rows.validation.tolist()
    assert stratified(labels, ["a", "b"], validation=4, seed=1).validation.tolist() != rows.validation.tolist()


def test_cut_keeps_the_order_and_copies_nothing_without_parts():
    train = Arrays(np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1), (np.arange(12) % 2).astype(np.int32))
    assert cut(train, ["a", "b"])["train"] is train
    parts = cut(train, ["a", "b"], validation=0.25)
    assert set(parts) == {"train", "validation"}
    for images, labels in parts.values():
        assert (np.diff(images.ravel().astype(int)) > 0).all()
        assert (images.ravel() % 2 == labels).all()


BAD = {
    "share of 1": ({"validation": 1.0}, r"validation 1\.0: give a share in \(0, 1\), a count .* from 1 to 11"),
    "negative": ({"test": -0.1}, r"test -0\.1: give a share"),
    "negative count": ({"test": -3}, "test -3: give a share"),
    "all images": ({"validation": 12}, "validation 12: give a share .* from 1 to 11"),
    "too many": ({"validation": 11}, "validation 11: at most 10 images are possible"),
    "nan": ({"validation": float("nan")}, "validation nan: give a share"),
    "text": ({"validation": "0.1"}, "validation 0.1: give a share"),
    "bool": ({"validation": True}, "validation True: give a share"),
    "sum": ({"validation": 0.5, "test": 0.5}, "test 0.5 and validation 0.5 leave none of the 12 images for training"),
    "seed": ({"validation": 0.5, "seed": -1}, "seed -1: give a whole number from 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    arguments, message = BAD[case]
    with pytest.raises(DataError, match=message):
        stratified(np.arange(12) % 2, ["a", "b"], **arguments)


def test_a_class_with_fewer_images_than_parts():
    labels = np.array([0, 0, 0, 1, 1])
    message = (
        r"class 'dog' has 2 images, fewer than the 3 parts of the split \(train, validation, test\); "
        "add images to it, remove the class, or pass test=0 and validation=0"
    )
    with pytest.raises(DataError, match=message):
        stratified(labels, ["cat", "dog"], validation=0.1, test=0.1)
    assert len(stratified(labels, ["cat", "dog"], validation=0.1).validation) == 2


def test_a_class_without_images_is_no_obstacle():
    rows = stratified(np.array([0, 0, 2, 2]), ["a", "b", "c"], validation=0.5)
    assert [len(part) for part in rows] == [2, 2, 0]
