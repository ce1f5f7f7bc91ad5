"""Which checkpoints are kept, and that what comes back is what was saved, or nothing."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from made import kept, tensorstore_gives_up
from states import assert_same, make_state, save

from resnet_jax.errors import CheckpointError
from resnet_jax.runs import stored
from resnet_jax.runs.checkpoint import Checkpoints, digests


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
        assert (checkpoints.ranked()[0], checkpoints.latest()) == (ranked[0], len(accuracies))
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


def test_the_meta_of_a_checkpoint_is_read_once(tmp_path, monkeypatch):
    """Its history grows with each epoch."""
    state, reads = make_state(), []
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
    read = stored.read_meta
    monkeypatch.setattr(stored, "read_meta", lambda path: reads.append(path) or read(path))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        checkpoints.restore_variables(3, {"params": state.params, "batch_stats": state.batch_stats})
        assert len(reads) == 1
        checkpoints.restore(3, make_state(0), 0)
        assert len(reads) == 2


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
