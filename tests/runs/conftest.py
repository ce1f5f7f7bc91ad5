"""The fixtures of the made data set, and two runs of it: one with a report, and one with the options of a module."""

from pathlib import Path

import made
import pytest
from made_fixtures import _made, cache_dir, data_dir  # noqa: F401

from resnet_jax import fit


@pytest.fixture(scope="session")
def reported(data_dir: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The folder of a run with a validation part and a report; not to be changed."""
    folder = tmp_path_factory.mktemp("reported") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        made.install(patch)
        fit(made.make_config(data_dir, folder, epochs=4, validation=8, devices=1, report=True))
    return folder


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest,
    data_dir: Path,  # noqa: F811
    cache_dir: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a run with the OPTIONS of the test's module, which was never stopped; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        made.install(patch)
        fit(made.make_config(data_dir, folder, **request.module.OPTIONS))
    return folder
