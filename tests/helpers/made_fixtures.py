"""Every test of training finds the made data set, prepared, and a folder for caches."""

from pathlib import Path

import made
import pytest

from resnet_jax.data import builders


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds the made data set."""
    folder = tmp_path_factory.mktemp("data")
    builders.prepare(made.make_spec(), folder, made.make_splits())
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$XDG_CACHE_HOME, the same for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_dir: Path) -> None:
    """Tables, cache and the current folder."""
    made.install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
