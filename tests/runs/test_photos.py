"""Photos prepared as the training images were: real modes of files, and drawings whose right pixels are known."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from resnet_jax import create_model
from resnet_jax.data import DATASETS
from resnet_jax.data.augment import Preprocess
from resnet_jax.data.pictures import decode
from resnet_jax.errors import DataError
from resnet_jax.models import Arch
from resnet_jax.runs import Config, DataConfig, Predictor
from resnet_jax.runs.build import DataInfo, named_info
from resnet_jax.runs.photos import as_trained, background, is_light_on_dark, on_dark, open_picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 60, 3), np.uint8)
SHIRT = np.zeros((28, 28, 1), np.uint8)  # it reaches the upper and the lower side, as in Fashion-MNIST
SHIRT[:, 8:20] = RNG.integers(100, 256, (28, 12, 1), np.uint8)
NEGATIVE = 255 - SHIRT


def predictor(info: DataInfo, config: Config | None = None) -> Predictor:
    model = create_model(Arch("tiny", ((1, 8),)), len(info.class_names))
    return Predictor(model, {}, info, Preprocess(info.image_shape[:2]), config=config)


def named(name: str) -> Predictor:
    config = Config("resnet18", data=DataConfig(name))
    return predictor(named_info(config.data), config)


FASHION = named("fashion_mnist")
FOLDER = predictor(DataInfo("pets", ("cat", "dog"), (32, 32, 3), 10, digest="1"))


def saved(path, array, **options):
    Image.fromarray(np.squeeze(array)).save(path, **options)
    return path


def test_any_mode_and_orientation_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    files = {
        "rgb.png": (Image.fromarray(RGB), {}, RGB),
        "turned.png": (Image.fromarray(RGB), {"exif": exif}, np.rot90(RGB, -1)),
        "wide.png": (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), {}, RGB[..., :1]),
        "alpha.png": (Image.fromarray(np.dstack([RGB, 0 * RGB[..., :1]])), {}, 255 + 0 * RGB),
        "palette.png": (Image.fromarray(RGB[..., 0]).convert("P"), {}, RGB[..., :1]),
        "cmyk.tif": (Image.fromarray(RGB).convert("CMYK"), {}, RGB),
    }
    for name, (image, options, expected) in files.items():
        image.save(tmp_path / name, **options)
        np.testing.assert_array_equal(open_picture(tmp_path / name), expected, err_msg=name)
        assert open_picture(tmp_path / name, 1).shape == (*expected.shape[:2], 1)


def test_what_is_no_picture_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "short.png").write_bytes(saved(tmp_path / "good.png", RGB).read_bytes()[:400])
    lines = {
        "text.png": "text.png cannot be read as a picture .*give a PNG",
        "short.png": "short.png cannot be read as a picture",
        "missing.png": "missing.png: there is no such file",
        ".": "is a folder; give a picture",
        "s3://bucket/a.png": "is a URL",
    }
    monkeypatch.chdir(tmp_path)
    for name, line in lines.items():
        with pytest.raises(DataError, match=line) as raised:
            open_picture(name)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("side", [20_000, 11_000])
def test_pillows_limit_is_kept(tmp_path, side):
    """20,000 x 20,000 is an error of Pillow's own; for 11,000 x 11,000 it only warns."""
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb.png cannot be read as a picture \(.*limit"):
        open_picture(tmp_path / "bomb.png")


def test_a_light_background_is_inverted():
    for picture, light in ((SHIRT, False), (NEGATIVE, True), (RGB // 4, False), (255 - RGB // 4, True)):
        found, inverted = on_dark(picture)
        assert inverted == light
        np.testing.assert_array_equal(found, 255 - picture if light else picture)


def test_one_corner_of_the_object_does_not_count():
    picture = NEGATIVE.copy()
    picture[:9, :9] = 0
    assert (background(picture), background(255 - picture)) == (255, 0)


def test_which_runs_are_light_on_dark():
    assert [name for name in DATASETS if is_light_on_dark(named(name))] == ["fashion_mnist", "mnist", "kmnist"]
    digits = named_info(DataConfig("mnist"))
    assert is_light_on_dark(predictor(digits))  # of a Trainer, which has no config
    folder = Config("resnet18", data=DataConfig(data_folder="mnist"))
    assert not is_light_on_dark(predictor(digits, folder))
    assert not is_light_on_dark(predictor(dataclasses.replace(digits, class_names=("a", "b"))))


def test_training_images_stay_as_they_are():
    for picture in (SHIRT, 255 - NEGATIVE, np.zeros_like(SHIRT)):
        photo = as_trained(picture, FASHION)
        np.testing.assert_array_equal(photo.pixels, picture)
        assert not photo.changes
    np.testing.assert_array_equal(as_trained(NEGATIVE, FASHION).pixels, SHIRT)
    np.testing.assert_array_equal(as_trained(NEGATIVE, FASHION, invert=False).pixels, NEGATIVE)


def test_a_photo_becomes_the_training_image():
    """The shirt, 4 times as large, on light gray paper with wide margins: the pixels of the shirt itself."""
    level = 235
    paper = np.full((200, 300, 3), level, np.uint8)
    paper[30:142, 90:138] = np.rint(level * (1 - SHIRT[:, 8:20] / 255)).repeat(4, 0).repeat(4, 1)
    photo = as_trained(paper, FASHION)
    assert photo.inverted
    assert photo.changes == (
        "inverted (light background)",
        "background made black",
        "margin removed",
        "made square with black",
    )
    assert np.abs(photo.pixels.astype(int) - SHIRT).max() <= 1
    digit = as_trained(paper, named("mnist"))  # its margin stays
    assert digit.changes == ("inverted (light background)", "background made black", "made square with black")
    assert digit.pixels[:6].max() == digit.pixels[:, :7].max() == 0 < digit.pixels[9:17, 9:12].min()


def test_an_enlarged_training_image_becomes_the_image():
    """With and without a margin, dark or light, and with the noise of a camera around it."""
    large = SHIRT.repeat(9, 0).repeat(9, 1)
    for picture in (large, 255 - large):
        photo = as_trained(picture, FASHION)
        np.testing.assert_array_equal(photo.pixels, SHIRT)
        assert "margin removed" not in photo.changes
    wide = np.pad(large, [(100, 80), (40, 120), (0, 0)])
    noise = np.clip(RNG.normal(0, 5, wide.shape), -12, 12)
    for level in (0, 1):
        noisy = np.clip(wide + level * noise, 0, 255).astype(np.uint8)
        photo = as_trained(255 - noisy, FASHION)
        assert "margin removed" in photo.changes
        assert np.abs(photo.pixels.astype(int) - SHIRT).mean() < (20 if level else 15)
        assert abs(int((photo.pixels > 60).any((1, 2)).sum()) - 28) <= 1  # as tall as the image


def test_an_empty_photo_is_black():
    for level in (0, 40, 255):
        assert not as_trained(np.full((50, 70, 1), level, np.uint8), FASHION).pixels.any()


def test_other_runs_get_what_from_folder_reads(tmp_path):
    path = saved(tmp_path / "photo.png", 255 - RGB // 4)
    photo = as_trained(open_picture(path), FOLDER)
    np.testing.assert_array_equal(photo.pixels, decode(path, (32, 32), 3))
    assert (photo.inverted, photo.changes) == (False, ("cropped around its centre",))
    inverted = as_trained(open_picture(path), FOLDER, invert=True)
    np.testing.assert_allclose(inverted.pixels, 255 - photo.pixels.astype(int), atol=1)
    assert inverted.changes[0] == "inverted"
