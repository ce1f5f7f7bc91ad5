import collections
import pickle

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import Arrays, ImageDataset, from_arrays
from resnet_jax.data import dataset as dataset_module
from resnet_jax.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 5, 4, 3), np.uint8)
LABELS = np.arange(30, dtype=np.int32) % 3


def test_arrays_in_their_final_form_are_used_as_they_are():
    data = from_arrays(IMAGES, LABELS)
    assert np.shares_memory(data.train.images, IMAGES)
    assert (data.validation, data.test) == (None, None)
    assert (data.image_shape, data.num_classes, data.class_names) == ((5, 4, 3), 3, ("0", "1", "2"))
    images, labels = data.train
    np.testing.assert_array_equal(images, IMAGES, strict=True)
    np.testing.assert_array_equal(labels, LABELS, strict=True)


class Indexed:
    """A data set of torchvision: it has no __iter__, and ends with IndexError."""

    classes = ("x", "y", "z")

    def __getitem__(self, i):
        return Image.fromarray(IMAGES[i]), int(LABELS[i])


class Tensor:
    """What NumPy knows of a PyTorch tensor."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


READABLE = {
    "JAX": (jax.numpy.asarray(IMAGES), jax.numpy.asarray(LABELS)),
    "nested lists": (IMAGES.tolist(), LABELS.tolist()),
    "list of arrays": (list(IMAGES), list(LABELS)),
    "memoryview": (IMAGES.data, LABELS.data),
    "tensor": (Tensor(IMAGES), Tensor(LABELS)),
    "wide integers": (IMAGES.astype(np.int64), LABELS.astype(np.uint64)),
    "not contiguous": (np.asfortranarray(IMAGES), LABELS.repeat(2)[::2]),
    "big endian": (IMAGES.astype(">u2"), LABELS.astype(">i8")),
    "whole floats as labels": (IMAGES, LABELS.astype(float)),
    "Pillow pictures": ([Image.fromarray(image) for image in IMAGES], LABELS),
    "pairs": (list(zip(IMAGES, LABELS, strict=True)), None),
    "a generator of records": (({"image": x, "label": y} for x, y in zip(IMAGES, LABELS, strict=True)), None),
    "Hugging Face's img": ([{"img": Image.fromarray(x), "label": int(y)} for x, y in zip(IMAGES, LABELS)], None),  # noqa: B905
    "torchvision": (Indexed(), None),
    "columns": ({"image": IMAGES, "label": LABELS}, None),
}


@pytest.mark.parametrize("case", READABLE)
def test_anything_that_numpy_can_read(case):
    train = from_arrays(*READABLE[case]).train
    np.testing.assert_array_equal(train.images, IMAGES, strict=True)
    np.testing.assert_array_equal(train.labels, LABELS, strict=True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_floats_become_float32(dtype):
    images = (IMAGES // 255).astype(dtype)  # 0 and 1, which all of them hold exactly
    train = from_arrays(images, LABELS).train
    np.testing.assert_array_equal(train.images, IMAGES // np.float32(255), strict=True)


def test_gray_images_get_a_channel_axis():
    assert from_arrays(IMAGES[..., 0], LABELS).image_shape == (5, 4, 1)
    assert from_arrays(list(zip(IMAGES[..., 0], LABELS, strict=True))).image_shape == (5, 4, 1)


def test_a_gray_picture_among_colours_gets_three_channels():
    items = [(IMAGES[0], 0), (IMAGES[1, ..., 0], 1), (Image.fromarray(IMAGES[2, ..., 0]), 1)]
    images = from_arrays(items).train.images
    np.testing.assert_array_equal(images[1], IMAGES[1, ..., :1].repeat(3, 2))
    np.testing.assert_array_equal(images[2], IMAGES[2, ..., :1].repeat(3, 2))


def test_bool_labels():
    assert from_arrays(IMAGES, LABELS > 0).train.labels.tolist() == (LABELS > 0).astype(int).tolist()


def test_class_names_that_the_iterable_brings():
    class Dataset(list):
        features = {"image": None, "label": collections.namedtuple("ClassLabel", "names")(["x", "y", "z"])}  # noqa: RUF012

    items = Dataset({"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True))
    assert from_arrays(items).class_names == ("x", "y", "z")
    assert from_arrays(items, class_names=["a", "b", "c"]).class_names == ("a", "b", "c")
    assert from_arrays(Indexed()).class_names == ("x", "y", "z")


def test_the_split_holds_out_rows_of_the_arrays():
    data = from_arrays(IMAGES, LABELS, validation=0.2, test=6, seed=3)
    assert data.class_counts() == {"train": (6, 6, 6), "validation": (2, 2, 2), "test": (2, 2, 2)}
    rows = np.concatenate([part.images for part in data.parts.values()]).reshape(30, -1)
    assert {row.tobytes() for row in rows} == {image.tobytes() for image in IMAGES}
    again = from_arrays(IMAGES, LABELS, validation=0.2, test=6, seed=3)
    assert data.digest == again.digest != from_arrays(IMAGES, LABELS, validation=0.2, test=6).digest


def test_parts_of_ones_own():
    validation = [{"image": image, "label": 1} for image in IMAGES[:4]]
    data = from_arrays(IMAGES, LABELS, validation=validation, test=(IMAGES[:2], [0, 4]))
    assert data.class_names == ("0", "1", "2", "3", "4")  # the labels of every part count
    assert data.class_counts() == {"train": (10, 10, 10, 0, 0), "validation": (0, 4, 0, 0, 0), "test": (1, 0, 0, 0, 1)}


def test_names_may_include_a_class_without_images():
    assert from_arrays(IMAGES, LABELS, ["a", "b", "c", "d"]).class_counts() == {"train": (10, 10, 10, 0)}


FLOATS = np.full((30, 5, 4, 1), 0.5, np.float32)


def spoilt(value: float) -> np.ndarray:
    images = FLOATS.copy()
    images[7, 1, 2] = value
    return images


BAD = {
    "no images": ((IMAGES[:0], []), {}, r"images of shape \(0, 5, 4, 3\): there are no images"),
    "empty list": (([], []), {}, r"images of shape \(0,\): give \(N, H, W\) or \(N, H, W, C\)"),
    "empty iterable": ((iter([]),), {}, "images is empty"),
    "one dimension": ((IMAGES[:, 0, 0, 0], LABELS), {}, r"images of shape \(30,\): give \(N, H, W\)"),
    "five dimensions": ((IMAGES[None], LABELS), {}, r"images of shape \(1, 30, 5, 4, 3\): give"),
    "two channels": ((IMAGES[..., :2], LABELS), {}, r"images of shape \(30, 5, 4, 2\): give .*C = 1 or 3$"),
    "channels first": ((IMAGES.transpose(0, 3, 1, 2), LABELS), {}, r"images\.transpose\(0, 2, 3, 1\)"),
    "size zero": ((IMAGES[:, :0], LABELS), {}, r"images of shape \(30, 0, 4, 3\)"),
    "NaN": ((spoilt(np.nan), LABELS), {}, r"images hold NaN, first in image 7; float images must be in \[0, 1\]"),
    "not scaled": ((spoilt(255), LABELS), {}, r"images go from 0\.5 to 255 in image 7; .*divide them by 255"),
    "normalised": ((spoilt(-2), LABELS), {}, r"images go from -2 to 0\.5 in image 7; .*must be in \[0, 1\]$"),
    "infinite": ((spoilt(np.inf), LABELS), {}, r"images go from 0\.5 to inf in image 7"),
    "integers above 255": ((IMAGES.astype(int) + 1, LABELS), {}, r"images are int64 from \d to 256: integer images"),
    "bool": ((IMAGES > 9, LABELS), {}, r"images of dtype bool: .*multiply them by np\.uint8\(255\)"),
    "complex": ((IMAGES * 1j, LABELS), {}, "images of dtype complex128: give"),
    "sizes": (([IMAGES[0], IMAGES[1, :3]], [0, 1]), {}, "images cannot become one NumPy array"),
    "sizes of records": (([(IMAGES[0], 0), (IMAGES[1, :3], 1)],), {}, "item 1 of images is 3x4 pixels, item 0 is 5x4"),
    "batches": (([(IMAGES, LABELS)],), {}, r"item 0 of images has shape \(30, 5, 4, 3\); .*not a batch"),
    "keys": (([{"pixels": IMAGES[0], "label": 0}],), {}, "item 0 of images has the keys 'pixels', 'label'; .*rename"),
    "other items": (([IMAGES[0]],), {}, 'item 0 of images is a ndarray; give labels, or an iterable of {"image"'),
    "labels missing": ((IMAGES,), {}, "images is a ndarray without labels; give labels"),
    "a path": (("pictures",), {}, "images 'pictures' is a path; read a folder of pictures with from_folder"),
    "lengths": ((IMAGES, LABELS[:7]), {}, "images and labels have different lengths, 30 and 7"),
    "half labels": ((IMAGES, LABELS / 2), {}, r"labels holds 0\.5 at index 1: give one whole number"),
    "NaN labels": ((IMAGES, LABELS * np.nan), {}, "labels holds nan at index 0"),
    "negative label": ((IMAGES, LABELS - 1), {}, "labels holds -1 at index 0: give one whole number from 0"),
    "text labels": ((IMAGES, ["cat"] * 30), {}, r"labels of dtype <U3: .*np\.unique\(labels, return_inverse=True\)"),
    "one-hot": ((IMAGES, np.eye(3)[LABELS]), {}, r"labels of shape \(30, 3\): .*labels\.argmax\(1\)"),
    "huge label": ((IMAGES, LABELS * 100), {}, "labels go up to 200, but there are only 30 images"),
    "one class": ((IMAGES, LABELS * 0), {}, "labels: all 30 labels are 0; training needs at least two classes"),
    "one of two": ((IMAGES, LABELS * 0 + 1), {}, "labels: all 30 labels are 1"),
    "one of two names": ((IMAGES, LABELS * 0, ["a", "b"]), {}, "labels: all 30 labels are 0"),
    "too few names": ((IMAGES, LABELS, ["a", "b"]), {}, "class_names has 2 names, but the labels go up to 2; give 3"),
    "one name": ((IMAGES, LABELS * 0, ["a"]), {}, r"class_names \('a',\): training needs at least two classes"),
    "repeated name": ((IMAGES, LABELS, ["a", "b", "a"]), {}, "class_names holds 'a' more than once"),
    "names as text": ((IMAGES, LABELS, "abc"), {}, "class_names 'abc': give a list of strings"),
    "names as numbers": ((IMAGES, LABELS, [1, 2, 3]), {}, r"class_names \(1, 2, 3\): give a tuple of strings"),
    "validation": ((IMAGES, LABELS), {"validation": 1.5}, r"validation 1\.5: give a share in \(0, 1\)"),
    "test of other labels": ((IMAGES, LABELS), {"test": (IMAGES, LABELS[1:])}, "test images and test labels have diff"),
    "test of other size": ((IMAGES, LABELS), {"test": (IMAGES[:, 1:], LABELS)}, "test images are 4x4x3 uint8, but the"),
    "test as floats": ((IMAGES, LABELS), {"test": (IMAGES / 255, LABELS)}, "test images are 5x4x3 float32, but the"),
    "test names": ((IMAGES, LABELS, list("abc")), {"test": (IMAGES, LABELS + 1)}, "but the test labels go up to 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_the_argument(case):
    arguments, options, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        from_arrays(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_mean_and_std_are_numpys(monkeypatch, chunk, dtype):
    monkeypatch.setattr(dataset_module, "CHUNK", chunk)
    images = IMAGES if dtype == "uint8" else (IMAGES / 255).astype(dtype)
    scaled = images.astype(np.float64) / (255 if dtype == "uint8" else 1)
    data = from_arrays(images, LABELS)
    np.testing.assert_allclose(data.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_the_std_of_a_constant_channel_is_one():
    data = from_arrays(np.full((4, 2, 2), 77, np.uint8), [0, 1, 0, 1])
    assert (data.mean, data.std) == ((77 / 255,), (1.0,))


def test_a_data_set_is_a_value():
    data = from_arrays(IMAGES, LABELS, validation=3, name="made")
    copy = pickle.loads(pickle.dumps(data))
    assert copy.digest == data.digest
    assert copy.describe() == data.describe() == "made: 27 training and 3 validation images of 5x4x3 in 3 classes"
    assert repr(data) == f"<ImageDataset {data.describe()}>"


def test_the_digest_depends_on_every_part_of_the_content():
    other = IMAGES.copy()
    other[29, 4, 3, 2] ^= 1
    sets = [
        from_arrays(IMAGES, LABELS),
        from_arrays(other, LABELS),
        from_arrays(IMAGES.reshape(30, 4, 5, 3), LABELS),
        from_arrays(IMAGES, LABELS[::-1]),
        from_arrays(IMAGES, LABELS, ["a", "b", "c"]),
        from_arrays(IMAGES, LABELS, test=(IMAGES, LABELS)),
        from_arrays(IMAGES, LABELS, validation=(IMAGES, LABELS)),
    ]
    assert len({data.digest for data in sets}) == len(sets)
    assert from_arrays(IMAGES.copy(), LABELS.tolist()).digest == sets[0].digest


BAD_PARTS = {
    "shape": (Arrays(IMAGES[0], LABELS), r"train images of shape \(5, 4, 3\)"),
    "dtype": (Arrays(IMAGES.astype(np.float64), LABELS), "train images of float64: give uint8, or float32"),
    "label dtype": (Arrays(IMAGES, LABELS.astype(np.int64)), r"train labels of shape \(30,\) and int64: give \(30,\)"),
    "label range": (
        Arrays(IMAGES, LABELS + 1),
        "train labels holds 3 at index 2: .* labels go from 0 to 2",
    ),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_a_data_set_checks_what_it_is_made_of(case):
    arrays, message = BAD_PARTS[case]
    with pytest.raises(DataError, match=message):
        ImageDataset(arrays, class_names=("a", "b", "c"))
