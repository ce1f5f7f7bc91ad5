"""A run that is stopped and goes on ends, bit for bit, as one that was never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import made
import pytest
from made import STEPS, damage, final, fit_stopped_at, kept, make_config, read_rows, snapshot, without_timings
from thorough import thorough_except

from resnet_jax import fit, load
from resnet_jax.errors import CheckpointError

EPOCHS = 3
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def whole(data_dir, cache_dir, tmp_path_factory) -> tuple:
    """What a run of three epochs comes to that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        made.install(patch)
        result = fit(make_config(data_dir, run_dir, epochs=EPOCHS))
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert without_timings(read_rows(run_dir)) == without_timings(result.history)
    return final(run_dir)


@pytest.mark.parametrize("step", thorough_except((1, 3), 1))  # every one: the next test
def test_stopped_by_a_signal(whole, data_dir, tmp_path, step):
    """Inside the first epoch and at its end; what the epoch had summed up goes on too."""
    config = make_config(data_dir, tmp_path / "run", epochs=EPOCHS)
    assert fit_stopped_at(step, config) == step
    assert len(read_rows(tmp_path / "run")) == step // STEPS
    result = fit(made.change(config, resume=True))
    assert final(tmp_path / "run") == whole
    assert without_timings(read_rows(tmp_path / "run")) == without_timings(result.history) == whole[-1]


@pytest.mark.thorough
def test_stopped_again_and_again(whole, data_dir, tmp_path):
    config = make_config(data_dir, tmp_path / "run", epochs=EPOCHS)
    for step in range(1, EPOCHS * STEPS):
        assert fit_stopped_at(step, made.change(config, resume=step > 1)) == step
    fit(made.change(config, resume=True))
    assert final(tmp_path / "run") == whole


def test_stopped_inside_an_epoch_of_scans(data_dir, tmp_path):
    """Two steps a call: a run stopped between calls goes on with the same calls."""
    config = make_config(data_dir, tmp_path / "a", steps_per_dispatch=2)
    fit(config)
    other = make_config(data_dir, tmp_path / "b", steps_per_dispatch=2)
    assert fit_stopped_at(2, other) == 2
    fit(made.change(other, resume=True))
    assert final(tmp_path / "b") == final(tmp_path / "a")


@pytest.mark.thorough
def test_more_epochs_for_a_finished_run(whole, data_dir, tmp_path):
    run_dir = tmp_path / "run"
    for epochs in (1, 2, EPOCHS):
        result = fit(make_config(data_dir, run_dir, epochs=epochs, resume=epochs > 1))
        assert [row["epoch"] for row in result.history] == list(range(1, epochs + 1))
    assert final(run_dir) == whole


def test_a_finished_run_stays_as_it_is(data_dir, tmp_path, capsys):
    first = fit(make_config(data_dir, tmp_path / "run"))
    before, rows = final(tmp_path / "run"), read_rows(tmp_path / "run")
    for _ in range(2):
        again = fit(make_config(data_dir, tmp_path / "run", resume=True))
        assert "nothing is left to do" in capsys.readouterr().out
        assert again.history == first.history  # to the last digit of the times
    assert (final(tmp_path / "run"), read_rows(tmp_path / "run")) == (before, rows)


FULL = """
import sys
import made
from resnet_jax.cli import main
from resnet_jax.runs.recording import Checkpointing

def on_epoch_end(self, loop, on_epoch_end=Checkpointing.on_epoch_end):
    if len(loop.history) == 2:
        self.checkpoints.manager.wait_until_finished()  # Orbax writes that of the first epoch in the background
        full.__enter__()
    on_epoch_end(self, loop)

full = made.no_large_files()
made.install()
Checkpointing.on_epoch_end = on_epoch_end
sys.exit(main(sys.argv[1:]))
"""


def test_a_checkpoint_that_cannot_be_written(whole, data_dir, cache_dir, tmp_path):
    """As on a full disk: one line, though it fails in the background; the run goes on from the checkpoint before it."""
    command = [sys.executable, "-c", FULL, *flags(data_dir, tmp_path / "run"), "--no-compile-cache"]
    run = subprocess.run(command, env=environment(cache_dir), capture_output=True, text=True)
    assert run.returncode == 2
    line = f"train.py: {tmp_path / 'run'} cannot be written to: File too large; fix this, then --resume "
    assert run.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in run.stderr
    assert final(tmp_path / "run")[0] == STEPS
    fit(make_config(data_dir, tmp_path / "run", epochs=EPOCHS, resume=True))
    assert final(tmp_path / "run") == whole
    assert kept(tmp_path / "run")[-1] == whole[0]  # nothing is left that is no checkpoint


def test_another_number_of_devices_goes_on(whole, data_dir, tmp_path):
    """Not bit for bit: sums are added in another order."""
    run_dir = tmp_path / "run"
    fit(make_config(data_dir, run_dir, epochs=1, devices=8))
    result = fit(make_config(data_dir, run_dir, epochs=EPOCHS, devices=1, resume=True))
    losses = [row["train_loss"] for row in result.history]
    assert losses == pytest.approx([row["train_loss"] for row in whole[-1]], rel=1e-3)


def environment(cache_dir: Path) -> dict[str, str]:
    """Of a process that finds this package and made.py."""
    return os.environ | {"XDG_CACHE_HOME": str(cache_dir), "PYTHONPATH": f"{HELPERS.parents[1]}:{HELPERS}"}


def start_process(step: int, argv: list[str], cache_dir: Path) -> subprocess.Popen:
    """run_made.py, when it has come to that step."""
    command = [sys.executable, str(HELPERS / "run_made.py"), str(step), *argv]
    env = environment(cache_dir)
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "waiting\n":
            return process
    raise AssertionError(process.communicate())


def flags(data_dir: Path, run_dir: Path) -> list[str]:
    """What make_config has, as a user says it."""
    line = f"--arch tiny --dataset made --epochs {EPOCHS} --batch-size 16 --devices 2 --data-dir {data_dir}"
    line += f" --run-dir {run_dir} --normalize --flip --crop-padding 1 --learning-rate 0.05"
    line += " --schedule constant --warmup-epochs 0.5 --precision float32 --no-report"
    return [*line.split(), "--momentum", "0.9", "--nesterov", "--weight-decay", "1e-3"]


@pytest.mark.parametrize("written", thorough_except((True, False), True), ids=["saved", "at once"])
def test_a_killed_process(whole, data_dir, cache_dir, tmp_path, written):
    """SIGKILL inside the second epoch, when the first one's checkpoint is written, or while it may be half written."""
    run_dir = tmp_path / "run"
    with start_process(STEPS + 1, flags(data_dir, run_dir), cache_dir) as process:
        try:
            while written and not (run_dir / "checkpoints" / str(STEPS)).is_dir():
                time.sleep(0.01)
            if written:
                with pytest.raises(CheckpointError, match="another process is training into this folder"):
                    fit(make_config(data_dir, run_dir, epochs=EPOCHS, resume=True))
        finally:  # or a failure would wait for it
            process.kill()
    assert process.returncode == -signal.SIGKILL
    fit(make_config(data_dir, run_dir, epochs=EPOCHS, resume=True))
    assert final(run_dir) == whole
    assert without_timings(read_rows(run_dir)) == whole[-1]
    assert whole[0] in kept(run_dir)  # and nothing in the folder that is no checkpoint


def test_a_process_that_is_asked_to_stop(whole, data_dir, cache_dir, tmp_path):
    """SIGTERM inside the second epoch: the checkpoint is of that step, and the command says how to go on."""
    with start_process(5, flags(data_dir, tmp_path / "run"), cache_dir) as process:
        process.terminate()
        _, stderr = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert stderr.splitlines()[-1] == f"stopped at step 5; continue with --resume --run-dir {tmp_path / 'run'}"
    assert final(tmp_path / "run")[0] == 5
    fit(make_config(data_dir, tmp_path / "run", epochs=EPOCHS, resume=True))
    assert final(tmp_path / "run") == whole


@made.tensorstore_gives_up
def test_a_damaged_latest_checkpoint(whole, data_dir, tmp_path, capsys):
    """The run continues from the one before it, to the same bits, and the damaged one is kept. Without a good one
    nothing is trained, and nothing changes."""
    run_dir = tmp_path / "run"
    fit(make_config(data_dir, run_dir, epochs=2))
    damage(run_dir, 2 * STEPS)
    capsys.readouterr()
    fit(make_config(data_dir, run_dir, epochs=EPOCHS, resume=True))
    out = capsys.readouterr().out
    assert out.count(f"; it is now named damaged-{2 * STEPS}, and the run continues from step {STEPS}\n") == 1
    assert f"resumed from step {STEPS}, after 1 of {EPOCHS} epochs" in out
    assert final(run_dir) == whole
    assert without_timings(read_rows(run_dir)) == whole[-1]
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert names == {str(2 * STEPS), str(3 * STEPS), f"damaged-{2 * STEPS}"}
    damage(run_dir, 2 * STEPS, 3 * STEPS)
    before = snapshot(run_dir)
    with pytest.raises(CheckpointError, match="the run has no good one"):
        fit(make_config(data_dir, run_dir, epochs=EPOCHS, resume=True))
    assert snapshot(run_dir) == before


@pytest.fixture
def x64():
    """A session with JAX_ENABLE_X64=1."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_a_session_with_64_bits(whole, data_dir, tmp_path, x64):
    """Float32 weights with the same bits, also of a run that is resumed; the session keeps its 64 bits."""
    fit(make_config(data_dir, tmp_path / "run", epochs=2))
    result = fit(make_config(data_dir, tmp_path / "run", epochs=EPOCHS, resume=True))
    assert final(tmp_path / "run") == whole
    assert {leaf.dtype.name for leaf in jax.tree.leaves(result.variables)} == {"float32"}
    assert jax.numpy.arange(2.0).dtype == "float64"
    images = made.make_splits().test.images
    rows = load(tmp_path / "run")(images)
    assert (rows.dtype.name, rows.shape) == ("float32", (made.NUM_TEST, 4))
    jax.config.update("jax_enable_x64", False)
    assert (load(tmp_path / "run")(images) == rows).all()
