"""Which checkpoints are kept, and that what comes back is what was saved, or nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from made import damage, flip_byte, kept, snapshot, tensorstore_gives_up

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.runs import stored
from resnet_jax.runs.checkpoint import Checkpoints, digests
from resnet_jax.runs.stored import Damaged
from resnet_jax.training.state import TrainState


def make_state(step: int = 3, width: int = 5, dtype: Any = np.float32) -> TrainState:
    """A little of everything: several axes, one number, an integer, an optimizer's tuple with an empty part."""
    rng = np.random.default_rng(step)
    params = {"conv": {"kernel": rng.random((3, 3, 2, width)).astype(dtype), "bias": rng.random(width).astype(dtype)}}
    stats = {"bn": {"mean": rng.random(width).astype(np.float32), "var": rng.random(width).astype(np.float32)}}
    opt_state = ((), (jax.tree.map(np.negative, params), np.int32(step)))
    unused: Any = None  # a checkpoint holds neither model nor optimizer
    return TrainState(np.int32(step), params, stats, opt_state, {}, np.uint32(0), unused, unused)


def assert_same(mine: TrainState, theirs: TrainState) -> None:
    """Every bit, dtype and place in the tree."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), mine, theirs)


def save(run_dir: Path, *steps: tuple[int, float | None]) -> None:
    with Checkpoints(run_dir) as checkpoints:
        for step, accuracy in steps:
            checkpoints.save(make_state(step), {"history": []}, accuracy)


@pytest.mark.parametrize(
    ("accuracies", "expected", "ranked"),
    [
        ([0.5], [1], [1]),
        ([0.5, 0.9, 0.3, 0.4], [2, 3, 4], [2, 4, 3]),
        ([0.9, 0.5, 0.3], [1, 2, 3], [1, 2, 3]),
        ([0.1, 0.2, 0.3], [2, 3], [3, 2]),
        ([0.5, None, None], [1, 2, 3], [1, 3, 2]),
        ([0.5, None, 0.7, None], [3, 4], [3, 4]),
        ([0.5, 0.5], [1, 2], [2, 1]),
        ([None, None, None], [2, 3], [3, 2]),
    ],
)
def test_the_latest_two_and_the_best_are_kept(tmp_path, accuracies, expected, ranked):
    """None: inside an epoch, where nothing has been evaluated."""
    save(tmp_path, *enumerate(accuracies, 1))
    assert kept(tmp_path) == expected
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (ranked[0], len(accuracies))
        assert checkpoints.ranked() == ranked


def test_the_best_outlives_the_process_that_saved_it(tmp_path):
    for step, accuracy in enumerate([0.5, 0.9, None, 0.3, 0.4], 1):
        save(tmp_path, (step, accuracy))
    assert kept(tmp_path) == [2, 4, 5]
    save(tmp_path, (6, 0.95))
    assert kept(tmp_path) == [5, 6]


def test_what_is_restored_is_what_was_saved(tmp_path):
    state, meta = make_state(), {"history": [{"epoch": 1, "loss": 0.1}], "seconds": 1.5, "text": "é"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, meta, 0.5)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore(3, make_state(0), 0), state)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        restored = checkpoints.restore_variables(3, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, variables)))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), restored, variables)
        found = checkpoints.restore_meta(3)
    assert {key: found[key] for key in meta} == meta
    assert found["validation_accuracy"] == 0.5
    assert found["step"] == 3


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(3), {})
        with pytest.raises(CheckpointError, match="step 3 was not saved; the latest there is 3"):
            checkpoints.save(make_state(3), {})


NETWORK = "3: the checkpoint is of another network, and is not damaged"


@pytest.mark.parametrize("other", [make_state(width=6), make_state(dtype=np.float64), make_state(dtype=np.float16)])
def test_a_checkpoint_of_another_network(tmp_path, other):
    """Another shape, or another dtype, which Orbax would cast to without a word."""
    save(tmp_path, (3, 0.5))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=NETWORK) as caught:
        checkpoints.restore(3, other, 0)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_more_or_fewer_parts(tmp_path):
    save(tmp_path, (3, 0.5))
    state = make_state()
    more = state.replace(params=state.params | {"head": {"bias": np.zeros(2, np.float32)}})
    fewer = state.replace(params={"conv": {"bias": state.params["conv"]["bias"]}})
    without = state.replace(opt_state=())
    others = state.replace(others={"cache": {"mean": np.zeros(2, np.float32)}})
    for other in (more, fewer, without, others):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=NETWORK):
            checkpoints.restore(3, other, 0)


def files_of(run_dir: Path) -> list[Path]:
    return sorted(path for path in (run_dir / "checkpoints").rglob("*") if path.is_file() and path.stat().st_size)


def restore_or_refuse(run_dir: Path) -> str:
    """Restore step 3 as saved, or get an error of one line: never anything else."""
    line = ""
    try:
        with Checkpoints(run_dir, read_only=True) as checkpoints:
            assert_same(checkpoints.restore(3, make_state(0), 0), make_state(3))
    except CheckpointError as error:
        line = str(error)
    assert "\n" not in line
    return "refused" if line else "restored"


@tensorstore_gives_up
def test_a_flipped_byte_never_comes_back_as_a_number(tmp_path):
    """Any byte of any file: the state is what was saved, or it is refused with a line that names the checkpoint."""
    save(tmp_path / "run", (3, 0.5))
    rng, outcomes = np.random.default_rng(0), []
    for path in files_of(tmp_path / "run"):
        content = path.read_bytes()
        for place in rng.integers(len(content), size=2):
            damaged = bytearray(content)
            damaged[place] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            outcomes.append((path.relative_to(tmp_path), int(place), restore_or_refuse(tmp_path / "run")))
        path.write_bytes(content)
    arrays = [outcome for path, _, outcome in outcomes if "d" in path.parts]  # OCDBT's folder of data
    assert len(arrays) >= 6
    assert "refused" in arrays, outcomes


def test_a_flipped_bit_of_an_array_is_named(tmp_path):
    """What Orbax itself gives back without a word: here saved with the digests of other numbers."""
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
    flipped = state.replace(params=jax.tree.map(np.copy, state.params))
    flipped.params["conv"]["bias"].view(np.uint8)[7] ^= 1
    (meta,) = (tmp_path / "checkpoints" / "3" / "meta").glob("metadata")
    values = json.loads(meta.read_text())
    values["digests"]["params"] = digests(flipped.params)
    del values["digest"]  # as in old checkpoints: meta has no digest of its own
    meta.write_text(json.dumps(values))
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(3, make_state(0), 0)
    assert "params['conv']['bias'] is not what was saved" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"is not what was saved\); the run has no other one"):
        Checkpoints(tmp_path)
    assert kept(tmp_path) == [3]


@pytest.mark.parametrize("item", ["params", "batch_stats", "opt_state", "meta"])
def test_a_missing_item(tmp_path, item):
    save(tmp_path, (3, 0.5))
    shutil.rmtree(tmp_path / "checkpoints" / "3" / item)
    for read_only in (True, False):
        with pytest.raises(CheckpointError, match="3: the checkpoint is damaged") as caught:
            Checkpoints(tmp_path, read_only=read_only).restore(3, make_state(0), 0)
    assert "\n" not in str(caught.value)


@tensorstore_gives_up
def test_truncated_files(tmp_path):
    save(tmp_path / "run", (3, 0.5))
    for path in files_of(tmp_path / "run"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        restore_or_refuse(tmp_path / "run")
        path.write_bytes(content)
    assert restore_or_refuse(tmp_path / "run") == "restored"


def test_reading_makes_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no run is kept there"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_digest_tells_bits_dtypes_and_shapes_apart():
    zero = np.zeros(4, np.float32)
    others = [-zero, zero.astype(np.int32), zero.reshape(2, 2), np.zeros(5, np.float32), zero + np.float32(1e-45)]
    assert len({digests([array])["[0]"] for array in (zero, *others)}) == 6
    assert digests({"a": zero}) == digests({"a": jnp.zeros(4)})


# --- damage, and what is no damage


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
@pytest.mark.parametrize("harm", [delete, halve, flip_byte])
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
            assert checkpoints.best() == 3
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
            CheckpointError, match=r"2: the checkpoint is damaged .* so are all others \(2, 1\)"
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
        ValueError("DEADLINE_EXCEEDED: barrier timed out"),
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
    for use in (lambda: Checkpoints(tmp_path), lambda: Checkpoints(tmp_path, read_only=True).best()):
        with pytest.raises(type(error)) as caught:
            use()
        assert caught.value is error
    assert kept(tmp_path) == [1, 2]


def test_a_file_that_the_system_cannot_read(tmp_path, monkeypatch):
    save(tmp_path, (1, 0.5))
    for error in (PermissionError(13, "Permission denied"), ValueError("reading [os_error_code='13']")):

        def fails(*_: Any, error=error) -> None:
            raise error

        monkeypatch.setattr(stored, "_restored", fails)
        with pytest.raises(
            CheckpointError, match="1 cannot be read: Permission denied; it may well be whole"
        ) as caught:
            Checkpoints(tmp_path)
        assert not isinstance(caught.value, Damaged)


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
