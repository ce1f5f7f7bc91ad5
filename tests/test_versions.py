"""--version."""

import importlib.metadata

import jax

from resnet_jax.versions import version, versions


def test_versions():
    name, number, *rest = versions().split()
    assert name == "resnet_jax"
    assert number.removesuffix(",") == version("resnet_jax")
    assert rest == ["jax", jax.__version__]
    assert version("numpy") == importlib.metadata.version("numpy")
    assert version("no-package-of-this-name") == "not installed"
