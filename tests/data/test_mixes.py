"""Mixup and cutmix: images and label distributions, over many draws."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax.data.augment import (
    Preprocess,
    Source,
    alternating_flip,
    apply,
    brightness,
    crop,
    cutmix,
    cutout,
    flip,
    mixup,
)
from resnet_jax.errors import ConfigError

RNG = np.random.default_rng(0)
IMAGES, CLASSES = 200, 5
SHAPE = (8, 6, 3)
DRAWS = 3000
KEYS = jax.random.split(jax.random.key(3), DRAWS)
ROWS = RNG.integers(0, IMAGES, DRAWS)
LABELS = RNG.integers(0, CLASSES, IMAGES)


def numbered() -> np.ndarray:
    """Each image has its own number in every pixel: between 0 and 1."""
    return np.broadcast_to((np.arange(IMAGES) / 256)[:, None, None, None], (IMAGES, *SHAPE)).astype(np.float32)


def batch(*augment, images: np.ndarray | None = None, keys: jax.Array = KEYS, rows: np.ndarray = ROWS):
    """Images and labels of rows, as numpy arrays."""
    held, labels = jnp.asarray(numbered() if images is None else images), jnp.asarray(LABELS)
    source = Source(lambda rows: (held[rows], labels[rows]), IMAGES, CLASSES)
    out = jax.jit(lambda keys, rows: Preprocess(augment=augment).batch(keys, rows, source))(keys, jnp.asarray(rows))
    return jax.device_get(out)


@pytest.mark.parametrize(
    "mix",
    thorough_except([mixup(0.2), mixup(1.0), cutmix(), cutmix(0.5, 0.5), mixup(0.4, 0.5)], mixup(0.4, 0.5), cutmix()),
    ids=repr,
)
def test_labels_are_distributions_of_at_most_two_classes(mix):
    images, labels = batch(mix)
    assert images.shape == (DRAWS, *SHAPE)
    assert labels.shape == (DRAWS, CLASSES)
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    assert labels.min() >= 0
    assert (labels > 0).sum(1).max() == 2
    assert (labels[np.arange(DRAWS), LABELS[ROWS]] > 0).mean() > 0.99  # its own class is one of them
    again = batch(mix)
    np.testing.assert_array_equal(again[0], images)
    np.testing.assert_array_equal(again[1], labels)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_is_a_weighted_mean_with_weights_from_beta(alpha):
    """Of image and label by the same weight. Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))."""
    rows = np.zeros(DRAWS, int)  # image 0 is black: the value is the other image's share of its own number
    images, labels = batch(mixup(alpha), rows=rows)
    np.testing.assert_allclose(images, np.broadcast_to(images[:, :1, :1, :1], images.shape))
    other_class = labels[:, LABELS[0]] < 1 - 1e-3
    weights = labels[other_class, LABELS[0]]
    value = images[other_class, 0, 0, 0] / (1 - weights)
    others = value * 256
    reliable = weights < 0.95  # divided by little, the number is rounded
    np.testing.assert_allclose(others[reliable], np.round(others[reliable]), atol=0.02)
    found = LABELS[np.round(others[reliable]).astype(int)]
    assert all(labels[other_class][reliable][i, k] > 0 for i, k in enumerate(found))  # image and label are of one row
    share = jax.vmap(lambda key: mixup(alpha)._share(key, alpha))(KEYS)
    assert abs(share.mean() - 0.5) < 4 * share.std() / math.sqrt(DRAWS)
    assert abs(share.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_the_other_image_is_any_of_the_data_set():
    """Seen in cutmix, where it stays whole: each row is drawn as often, independently of the image's own."""
    images, _ = batch(cutmix(1.0), rows=np.zeros(DRAWS, int))
    others = np.round(images.max((1, 2, 3)) * 256).astype(int)
    counts = np.bincount(others[others > 0], minlength=IMAGES)[1:]  # 0: the image itself, or nothing was pasted
    expected = counts.mean()
    assert ((counts - expected) ** 2 / expected).sum() < IMAGES - 2 + 4 * math.sqrt(2 * IMAGES)


def test_cutmix_pastes_a_rectangle_and_weighs_labels_by_area():
    images, labels = batch(cutmix(1.0), rows=np.zeros(DRAWS, int))
    pasted = (images > 0).all(-1)
    assert (pasted == (images > 0).any(-1)).all()
    for image, label, where in zip(images, labels, pasted, strict=True):
        if not where.any():
            assert label[LABELS[0]] == pytest.approx(1)
            continue
        rows, columns = np.nonzero(where)
        assert len(rows) == (rows.max() + 1 - rows.min()) * (columns.max() + 1 - columns.min())
        other = LABELS[round(float(image[where][0, 0]) * 256)]
        wanted = np.zeros(CLASSES)
        wanted[LABELS[0]] += 1 - where.mean()
        wanted[other] += where.mean()
        np.testing.assert_allclose(label, wanted, atol=1e-6)
    np.testing.assert_allclose(pasted.mean(0), covered_by_hand() * (1 - 1 / IMAGES), atol=4 * math.sqrt(0.25 / DRAWS))


def covered_by_hand() -> np.ndarray:
    """How often cutmix(1.0) covers each pixel: over all centres, and over shares that are uniform in [0, 1]."""
    height, width, _ = SHAPE
    covered = np.zeros((height, width))
    shares = (np.arange(400) + 0.5) / 400
    for share in shares:
        tall, wide = int(math.sqrt(1 - share) * height), int(math.sqrt(1 - share) * width)
        for y in range(height):
            for x in range(width):
                top, left = y - tall // 2, x - wide // 2
                covered[max(top, 0) : top + tall, max(left, 0) : left + wide] += 1
    return covered / (len(shares) * height * width)


@pytest.mark.parametrize("mix", [mixup(1.0, 0.25), cutmix(1.0, 0.25)], ids=repr)
def test_the_share_of_images_that_are_mixed(mix):
    share = np.asarray(jax.vmap(lambda key: mix._share(key, 1.0))(KEYS))
    assert abs((share < 1).mean() - 0.25) < 4 * math.sqrt(0.1875 / DRAWS)


@pytest.mark.parametrize("mix", [mixup(1.0, 0), cutmix(1.0, 0)], ids=repr)
def test_a_probability_of_0_leaves_images_and_labels(mix):
    images, labels = batch(mix)
    np.testing.assert_array_equal(images, numbered()[ROWS])
    np.testing.assert_array_equal(labels, np.eye(CLASSES)[LABELS[ROWS]])


def test_the_other_image_is_augmented_by_what_comes_before_only():
    """Before: all of it is black. After: only the mixture is changed."""

    def black(key, image):
        return jnp.zeros_like(image)

    images, _ = batch(black, mixup(1.0))
    assert images.max() == 0
    images, _ = batch(mixup(1.0), black)
    assert images.max() == 0

    def by_own(key, image):  # a different number for each image
        return jnp.full_like(image, jax.random.uniform(key))

    images, _ = batch(by_own, cutmix(1.0))
    values = [np.unique(image) for image in images]
    assert max(map(len, values)) == 2
    firsts = np.asarray([value[0] for value in values if len(value) == 2])
    assert len(np.unique(firsts)) > 0.9 * len(firsts)  # the other image has a key of its own


def test_two_mixes_one_after_the_other():
    """Each draws its own other image; labels are then of up to three classes."""
    images, labels = batch(mixup(1.0), cutmix(1.0))
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    assert (labels > 0).sum(1).max() == 3
    assert 0 <= images.min() <= images.max() <= 1


def test_bytes_are_mixed_in_zero_to_one():
    pictures = RNG.integers(0, 256, (IMAGES, *SHAPE), np.uint8)
    images, _ = batch(flip, crop(2), mixup(1.0), images=pictures)
    floats, _ = batch(flip, crop(2), mixup(1.0), images=(pictures / np.float32(255)).astype(np.float32))
    np.testing.assert_allclose(images, floats, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixup(0), "mixup: alpha 0 is out of range: it must be finite and above 0"),
        (lambda: mixup(-1), "mixup: alpha -1 is out of range: it must be finite and above 0"),
        (lambda: cutmix(math.nan), "cutmix: alpha nan is out of range"),
        (lambda: cutmix(1, 1.5), "cutmix: probability 1.5 is out of range: it must be from 0 to 1"),
    ],
)
def test_an_option_out_of_range(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)


# --- a batch of one's own loop


def test_a_batch_of_ones_own():
    """The other image is one of the same batch; the same under jit."""
    pictures, labels = jnp.asarray(RNG.integers(0, 256, (16, *SHAPE), np.uint8)), jnp.asarray(LABELS[:16])
    augment = [flip, mixup(1.0)]
    images, targets = apply(augment, KEYS[0], pictures, labels, CLASSES)
    assert images.shape == (16, *SHAPE)
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert set(np.nonzero(np.asarray(targets))[1]) <= set(LABELS[:16].tolist())
    jitted = jax.jit(lambda key, images, labels: apply(augment, key, images, labels, CLASSES))
    np.testing.assert_allclose(jitted(KEYS[0], pictures, labels)[0], images, atol=1e-6)
    _, plain = apply([flip, brightness(0.1)], KEYS[0], pictures, labels)
    np.testing.assert_array_equal(plain, labels)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ([mixup(0.2)], "num_classes 0 must be at least 1"),
        ([cutout], r"augment: <class '.*cutout'> is no function of \(key, image\); write cutout\(\)"),
        (["flip"], "augment: 'flip' is no function"),
        ([cutout(6)], r"cutout by 6 pixels: the images have 8x6; use less than 6"),
    ],
)
def test_a_batch_that_cannot_be_augmented(augment, message):
    with pytest.raises(ConfigError, match=message):
        apply(augment, KEYS[0], jnp.zeros((4, *SHAPE)), jnp.zeros(4, int))


def test_an_alternating_flip_needs_a_data_set():
    with pytest.raises(ConfigError, match="alternating_flip needs the rows of a data set; use flip here"):
        apply([alternating_flip], KEYS[0], jnp.zeros((4, *SHAPE)), jnp.zeros(4, int))
