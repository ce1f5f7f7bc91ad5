"""Damaged checkpoints: which one is used instead, what happens to them, and what is no damage."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import damage, flip_byte, kept, snapshot, tensorstore_gives_up
from states import assert_same, make_state, save
from thorough import thorough_except

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.runs import stored
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.recording import check_not_lost
from resnet_jax.runs.stored import Damaged


def delete(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def needed(file: Path) -> bool:
    """Whether a checkpoint is lost without this file, given below the checkpoint's folder."""
    of_one_process = "ocdbt.process_0" in file.parts  # Orbax copies what it needs of these into the item's folder
    return file.name in ("metadata", "_METADATA") or (
        not of_one_process and ("d" in file.parts or file.name == "manifest.ocdbt")
    )


@tensorstore_gives_up
@pytest.mark.parametrize("harm", thorough_except((delete, halve, flip_byte), flip_byte))
def test_damage_to_any_file_of_the_latest_checkpoint(tmp_path, capsys, harm):
    """The newest good checkpoint is used and has every bit; a bad one is renamed, reported, and never deleted."""
    save(tmp_path, (3, 0.5), (6, 0.4))
    folder = tmp_path / "checkpoints" / "6"
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        file, content = path.relative_to(folder), path.read_bytes()
        harm(path)
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            seen = checkpoints.newest_good()
        capsys.readouterr()
        with Checkpoints(tmp_path) as checkpoints:
            latest = checkpoints.latest()
            assert_same(checkpoints.restore(seen, make_state(0), 0), make_state(seen))
            assert checkpoints.ranked()[0] == 3
        assert latest == seen, file
        lines = capsys.readouterr().out.splitlines()
        if latest == 3:
            assert needed(file)
            assert lines[0].startswith(f"{folder}: the checkpoint is damaged (")
            assert lines[0].endswith("; it is now named damaged-6, and the run continues from step 3")
            (tmp_path / "checkpoints" / "damaged-6").rename(folder)
        else:
            assert not needed(file) or harm is flip_byte, file
            assert [f"{path} was damaged; it was written again" in line for line in lines] == [True] * len(lines)
            assert bool(lines) == (file == stored.METRICS_FILE)
        path.write_bytes(content)


@tensorstore_gives_up
def test_damaged_checkpoints_are_kept_under_a_new_name(tmp_path, capsys):
    """Also where that name is taken, and the step is saved again."""
    save(tmp_path, (1, 0.3), (2, 0.9))
    for name in ("damaged-2", "damaged-2-2"):
        damage(tmp_path, 2)
        save(tmp_path, (2, 0.5))
        assert sorted(path.name for path in (tmp_path / "checkpoints" / name).iterdir())[-1] == "params"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "damaged-2", "damaged-2-2"]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.ranked() == [2, 1]


@tensorstore_gives_up
def test_without_a_good_checkpoint_nothing_changes(tmp_path):
    save(tmp_path, (1, 0.3), (2, 0.9))
    damage(tmp_path, 1, 2)
    before = snapshot(tmp_path)
    for open_ in (lambda: Checkpoints(tmp_path), lambda: Checkpoints(tmp_path, read_only=True).newest_good()):
        with pytest.raises(
            CheckpointError, match=r"2: the checkpoint is damaged .* the run has no good one \(damaged: 2, 1\)"
        ) as caught:
            open_()
        assert "\n" not in str(caught.value)
        assert "delete" not in str(caught.value)
    assert snapshot(tmp_path) == before
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step)).rename(tmp_path / "checkpoints" / f"damaged-{step}")
    with pytest.raises(CheckpointError, match="no good checkpoint, only damaged ones"):
        Checkpoints(tmp_path)


@tensorstore_gives_up
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"validation_accuracy": "high"}', b"\xff", b"7"])
def test_metrics_are_written_again(tmp_path, content):
    """Orbax reads this file of every checkpoint when it is opened."""
    save(tmp_path, (1, 0.9), (2, 0.5), (3, None))
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / "metrics" / "metrics").write_bytes(content)
    save(tmp_path, (4, 0.6))
    assert kept(tmp_path) == [1, 3, 4]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.ranked() == [1, 4, 3]


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("coordination service: barrier timed out"),
        RuntimeError("DEADLINE_EXCEEDED: barrier timed out"),
        ImportError("no module named zstandard"),
        AttributeError("module jax has no attribute"),
        ConfigError("unknown data set"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_stay_what_they_are(tmp_path, monkeypatch, error):
    """Only a digest, a format or a missing file proves damage."""
    save(tmp_path, (1, 0.5), (2, 0.5))

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(stored, "_restored", fails)
    for use in (lambda: Checkpoints(tmp_path), lambda: Checkpoints(tmp_path, read_only=True).ranked()):
        with pytest.raises(type(error)) as caught:
            use()
        assert caught.value is error
    assert kept(tmp_path) == [1, 2]


def test_a_file_that_the_system_cannot_read(tmp_path, monkeypatch):
    save(tmp_path, (1, 0.5))
    for error, reason in (
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ValueError("reading [os_error_code='13']"), "Permission denied"),
        (ValueError("DEADLINE_EXCEEDED: barrier timed out"), "DEADLINE_EXCEEDED: barrier timed out"),
    ):

        def fails(*_: Any, error=error) -> None:
            raise error

        monkeypatch.setattr(stored, "_restored", fails)
        with pytest.raises(
            CheckpointError, match=f"1 cannot be read: {reason}; this does not mean that it is damaged"
        ) as caught:
            Checkpoints(tmp_path)
        assert not isinstance(caught.value, Damaged)


@pytest.mark.parametrize("content", ["[]", "null", "7"])
def test_a_file_of_orbax_that_is_another_json(tmp_path, content, capsys):
    save(tmp_path, (1, 0.5), (2, 0.4))
    (tmp_path / "checkpoints" / "2" / "params" / "_METADATA").write_text(content)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.newest_good() == 1
    assert "params/_METADATA is not a JSON object" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [2, 3])
def test_a_run_that_lost_its_checkpoints_is_not_started_anew(tmp_path, rows):
    (tmp_path / "metrics.jsonl").write_text("{}\n" * rows)
    with (
        pytest.raises(CheckpointError, match=r"has 3 epochs, and .* has no checkpoint")
        if rows > 2
        else contextlib.nullcontext()
    ):
        check_not_lost(tmp_path)


def test_one_of_two_equal_arrays_is_damaged(tmp_path, monkeypatch):
    """They have one digest: the good one must not stand for both."""
    good, bad = np.zeros(3, np.float32), np.ones(3, np.float32)
    meta = {"digests": {"params": {"a": stored.digest(good), "b": stored.digest(good)}}}
    for arrays, damaged in (([good, good], False), ([good, bad], True)):
        monkeypatch.setattr(stored, "_restored", lambda *_, arrays=arrays: {"params": arrays})
        with pytest.raises(Damaged, match="is not what was saved") if damaged else contextlib.nullcontext():
            stored.read_arrays(tmp_path, meta, ["params"])


def test_a_meta_of_another_version_is_not_damaged(tmp_path):
    meta = {"versions": {"resnet_jax": "9.0"}}
    message = r"which version 9\.0 wrote \(KeyError: 'arch'\); it is not damaged"
    with pytest.raises(CheckpointError, match=message), stored.understood(tmp_path, stored.sealed(meta)):
        meta["arch"]
    with pytest.raises(Damaged, match="meta has no 'arch'"), stored.understood(tmp_path, meta):
        meta["arch"]


def test_a_checkpoint_that_is_removed_while_it_is_read(tmp_path, capsys):
    """By the process that trains the run: that is no damage."""
    save(tmp_path, (1, 0.9), (2, 0.5))
    checkpoints = Checkpoints(tmp_path, read_only=True)

    def read(step: int) -> dict[str, Any]:
        shutil.rmtree(checkpoints.path(1), ignore_errors=True)
        return checkpoints.restore_meta(step)

    assert checkpoints.first_good(checkpoints.ranked(), read)["step"] == 2
    assert capsys.readouterr().out == ""
    with pytest.raises(CheckpointError, match="1 is gone; if the run is being trained just now, try again"):
        checkpoints.first_good([1], read)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


OPENS = """
import sys
from pathlib import Path
from resnet_jax.errors import CheckpointError
from resnet_jax.runs.checkpoint import Checkpoints
try:
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        print(checkpoints.latest())
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize(("pattern", "damaged"), [("params/d/*", True), ("_CHECKPOINT_METADATA", False)])
def test_a_process_prints_one_line_and_no_traceback(tmp_path, pattern, damaged):
    """TensorStore calls back in a closed event loop until the process ends; Orbax logs what no run needs."""
    save(tmp_path, (2, 0.9))
    for path in (tmp_path / "checkpoints" / "2").glob(pattern):
        truncate(path)
    environment = os.environ | {"PYTHONPATH": str(Path(stored.__file__).parents[2])}
    command = [sys.executable, "-c", OPENS, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    (line,) = run.stdout.splitlines()
    assert ("2: the checkpoint is damaged (" in line) == damaged
    assert damaged or line == "2"
