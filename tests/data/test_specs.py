import importlib.util
from pathlib import Path
from typing import Any

import pytest

from resnet_jax.data import DATASETS


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
