"""Folders that are no run, or cannot be read."""

import os
from pathlib import Path

import pytest

from resnet_jax import load
from resnet_jax.errors import CheckpointError, ConfigError, InteropError
from resnet_jax.runs import grow_run, open_weights
from resnet_jax.runs.folders import check_folder, readable, runs_hint


def test_the_folder_of_the_runs_is_no_run():
    """The message names the runs inside, the newest first."""
    assert runs_hint(Path("runs")) == ""
    for time, name in enumerate("abcdefg", 1):
        folder = Path("runs") / name / "checkpoints" / "3"
        folder.mkdir(parents=True)
        os.utime(folder, (time, time))
    hint = "; it holds the runs runs/g, runs/f, runs/e, runs/d, runs/c and 2 more: give one of them"
    assert runs_hint(Path("runs")) == hint
    for opens, error in (
        (lambda: load("runs"), CheckpointError),
        (lambda: grow_run("runs", "new", 1), CheckpointError),
        (lambda: open_weights("runs"), InteropError),
    ):
        with pytest.raises(error) as caught:
            opens()
        assert str(caught.value).endswith(hint)


def test_a_folder_without_permission(monkeypatch):
    """Python's own error has no place in a script that catches UserError; root may read everything, so it is raised."""
    Path("run/checkpoints").mkdir(parents=True)

    def closed(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", closed)
    for opens in (load, open_weights):
        with pytest.raises(CheckpointError, match=r"run/checkpoints cannot be read: Permission denied$"):
            opens(Path("run"))


def test_an_error_without_a_number_is_none_of_the_systems():
    with pytest.raises(TimeoutError), readable(Path("run")):
        raise TimeoutError("coordination service: barrier timed out")


def test_a_run_is_a_folder(tmp_path):
    check_folder(tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=f"RUN {path}: there is no such folder; give the folder of a run"):
            check_folder(path)
