"""The fixtures of the made data set, and a run on it."""

from pathlib import Path

import made
import pytest
from made_fixtures import _made, cache_dir, data_dir  # noqa: F401

from resnet_jax import fit


@pytest.fixture(scope="session")
def run_dir(data_dir, cache_dir, tmp_path_factory) -> Path:  # noqa: F811
    """A run of two epochs; not to be changed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        made.install(patch)
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        fit(made.make_config(data_dir, folder))
    return folder
