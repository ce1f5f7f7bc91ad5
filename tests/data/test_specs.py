import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax import numpy as jnp

from resnet_jax.data import DATASETS, from_arrays
from resnet_jax.runs import DataConfig
from resnet_jax.runs.build import info_of, make_preprocess, named_info


def registered_by_tfds() -> dict[str, tuple[int, str]]:
    """URL -> (bytes, sha256) from the tables inside the installed TFDS, read as text."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    assert spec is not None
    assert spec.origin is not None
    tables = Path(spec.origin).parent / "url_checksums"
    rows = [
        line.split("\t")
        for name in ("*mnist.txt", "cifar10.txt")
        for table in tables.glob(name)
        for line in table.read_text().splitlines()
    ]
    return {url: (int(size), sha256) for url, size, sha256, _ in rows}


@pytest.mark.parametrize("name", DATASETS)
def test_urls_and_checksums_are_those_that_tfds_registers(name):
    registered = registered_by_tfds()
    spec = DATASETS[name]
    assert spec.name == name
    for file in spec.files:
        assert registered[spec.url + file.name] == (file.size, file.sha256)


def test_class_names_of_fashion_mnist_are_those_of_tfds():
    from tensorflow_datasets.image_classification import mnist

    stock: Any = mnist.FashionMNIST(data_dir="/nonexistent")
    assert list(DATASETS["fashion_mnist"].class_names) == stock.info.features["label"].names


MEAN_STD = {
    "fashion_mnist": ((0.286041,), (0.353024,)),
    "mnist": ((0.1307,), (0.3081,)),
    "kmnist": ((0.1918,), (0.3483,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


@pytest.mark.parametrize("name", DATASETS)
def test_mean_and_deviation_of_each_channel(name):
    """Issue 11, case 12. Published values; those of Fashion-MNIST are measured by test_catalogue.py."""
    assert DATASETS[name].channel_mean_std == MEAN_STD[name]
    config = DataConfig(dataset=name, normalize=True)
    info = named_info(config)
    assert info.mean_std == MEAN_STD[name]
    images = np.random.default_rng(0).integers(0, 256, (2, *info.image_shape), np.uint8)
    mean, std = (np.array(values, np.float64) for values in MEAN_STD[name])
    found = make_preprocess(config, info).evaluate(jnp.asarray(images))
    np.testing.assert_allclose(found, (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_number_serves_all_channels_and_none_is_measured(channels):
    shape = (28, 28, channels)
    spec = dataclasses.replace(DATASETS["mnist"], image_shape=shape, mean_std=(0.25, 0.5))
    assert spec.channel_mean_std == ((0.25,) * channels, (0.5,) * channels)
    assert dataclasses.replace(spec, mean_std=None).channel_mean_std is None


def test_a_data_set_without_an_entry_is_measured_per_channel(monkeypatch):
    monkeypatch.setitem(DATASETS, "cifar10", dataclasses.replace(DATASETS["cifar10"], mean_std=None))
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8) // np.array([1, 2, 4], np.uint8)
    data = from_arrays(images, np.arange(20) % 10)
    info = info_of(DataConfig(dataset="cifar10", normalize=True), data)
    pixels = data.train.images.reshape(-1, 3) / 255
    assert info.mean_std is not None
    np.testing.assert_allclose(info.mean_std, (pixels.mean(0), pixels.std(0)), rtol=1e-12)
    assert info_of(DataConfig(dataset="cifar10"), data).mean_std is None
