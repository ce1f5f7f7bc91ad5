"""fit as a whole: against the network applied in numpy's terms, on other devices, and when it must give up."""

import dataclasses
import json
import threading
import types

import jax
import made
import numpy as np
import pytest
from jax import numpy as jnp
from made import BATCH, STEPS, compilations, final, kept, make_config, make_splits, read_rows, without_timings
from thorough import thorough_except

import resnet_jax
from resnet_jax import create_model, fit
from resnet_jax.errors import CheckpointError, ConfigError, TrainingError
from resnet_jax.runs import OptimConfig, RunResult, rundir
from resnet_jax.runs.build import make_schedule
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.fit_run import report_unused
from resnet_jax.training.metrics import Sums


@pytest.fixture(scope="module")
def one(data_dir, cache_dir, tmp_path_factory) -> RunResult:
    """Two epochs on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        made.install(patch)
        return fit(make_config(data_dir, tmp_path_factory.mktemp("one") / "run", devices=1))


def columns(result, *names) -> np.ndarray:
    return np.array([[row[name] for name in names] for row in result.history])


def final_variables(run_dir) -> dict:
    model = create_model(made.NETS[0], 4)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        return checkpoints.restore_variables(2 * STEPS, like)


def test_its_test_metrics_are_those_of_the_whole_test_set_at_once(one):
    """37 images in batches of 16, against one model.apply and numpy in double precision."""
    images, labels = make_splits().test
    model = create_model(made.NETS[0], 4)
    logits = np.asarray(
        jax.jit(model.apply)(final_variables(one.run_dir), (images.astype(np.float32) / 255 - 0.5) / 0.25), np.float64
    )
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    assert one.history[-1]["test_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert one.test_accuracy == one.history[-1]["test_accuracy"] == (logits.argmax(1) == labels).mean()


@pytest.mark.parametrize("devices", thorough_except((2, 8), 2))
def test_the_curve_and_the_weights_of_one_device(one, data_dir, tmp_path, devices):
    """To rtol 1e-3 after six steps with momentum, augmentation and synchronised batch norm: see test_step.py."""
    many = fit(make_config(data_dir, tmp_path / "run", devices=devices))
    losses = ("train_loss", "test_loss", "learning_rate")
    np.testing.assert_allclose(columns(many, *losses), columns(one, *losses), 1e-3)
    counts = ("epoch", "step", "train_accuracy")
    np.testing.assert_array_equal(columns(many, *counts), columns(one, *counts))
    made.assert_trees_close(final_variables(many.run_dir), final_variables(one.run_dir), 1e-3, 1e-4)


@pytest.mark.thorough
def test_steps_in_one_dispatch_are_the_same_run(one, data_dir, tmp_path):
    """Three steps an epoch, two and then one of them in a call."""
    scanned = fit(make_config(data_dir, tmp_path / "run", devices=1, steps_per_dispatch=2))
    names = ("epoch", "step", "train_accuracy", "learning_rate")
    np.testing.assert_array_equal(columns(scanned, *names), columns(one, *names))
    np.testing.assert_allclose(columns(scanned, "train_loss"), columns(one, "train_loss"), 1e-3)
    made.assert_trees_close(final_variables(scanned.run_dir), final_variables(one.run_dir), 1e-3, 1e-4)


def test_it_learns(data_dir, tmp_path):
    """Four patterns under noise: chance is a quarter."""
    result = fit(make_config(data_dir, tmp_path / "run", epochs=30, flip=False, crop_padding=0))
    assert result.history[-1]["train_accuracy"] > 0.8
    assert result.test_accuracy > 0.5


def test_what_it_keeps_and_gives_back(one):
    assert read_rows(one.run_dir) == one.history
    rows = one.history
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, STEPS), (2, 2 * STEPS)]
    warm_up = [0.05 * step / round(0.5 * STEPS) for step in (0, 1)] + [0.05]
    assert rows[0]["learning_rate"] == pytest.approx(warm_up[-1])
    for row in rows:
        assert row["train_accuracy"] * STEPS * BATCH == pytest.approx(round(row["train_accuracy"] * STEPS * BATCH))
        assert row["images_per_second"] == pytest.approx(STEPS * BATCH / row["train_seconds"])
    assert {path.name for path in one.run_dir.iterdir()} == {".lock", "checkpoints", "config.json", "metrics.jsonl"}


def test_the_first_images_of_each_split(data_dir, tmp_path, capsys):
    result = fit(make_config(data_dir, tmp_path / "run", epochs=1, train_images=33, test_images=5))
    assert result.history[0]["step"] == 2
    assert "of 5)" in capsys.readouterr().out


def test_it_says_what_it_runs_on(data_dir, tmp_path, capsys):
    fit(make_config(data_dir, tmp_path / "run", epochs=1, precision="bfloat16", devices=2))
    out = capsys.readouterr().out
    assert "tiny on cpu: 2 x cpu" in out
    assert "bfloat16" in out
    assert "epoch 1/1: train loss" in out


def test_bfloat16_is_of_activations_only(data_dir, tmp_path):
    result = fit(make_config(data_dir, tmp_path / "run", precision="bfloat16"))
    leaves = jax.tree.leaves(final_variables(result.run_dir))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}


def test_later_epochs_compile_nothing(data_dir, tmp_path):
    """Nor does a run of a checkpoint: the state is put back in the form that a step puts it out."""
    counts = []
    for epochs in (1, 3):
        with compilations() as programs:
            fit(make_config(data_dir, tmp_path / str(epochs), epochs=epochs))
            counts.append(len(programs))
    assert counts[0] == counts[1] > 0
    with compilations() as programs:
        fit(make_config(data_dir, tmp_path / "1", epochs=3, resume=True))
    assert len(programs) <= counts[0]


def test_the_default_folder_is_named_as_the_seed_names_it(data_dir):
    result = fit(dataclasses.replace(make_config(data_dir, "")))  # pyright: ignore[reportArgumentType]
    assert result.run_dir.parent.name == "runs"
    assert result.run_dir.match("runs/tiny-made-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]-*-*-*")
    again = fit(made.change(make_config(data_dir, ""), resume=True, epochs=3))  # pyright: ignore[reportArgumentType]
    assert again.run_dir == result.run_dir
    assert len(again.history) == 3


@pytest.mark.parametrize(
    ("changes", "platform", "line"),
    [
        ({"cpu_kernels": "onednn"}, "tpu", "--cpu-kernels onednn has no effect on a tpu"),
        ({"sync_batch_norm": False}, "cpu", "--no-sync-batch-norm has no effect on one device"),
        ({"warmup_epochs": 0.1}, "cpu", "--warmup-epochs 0.1 has no effect in epochs of 3 steps"),
        ({"early_stopping": 5}, "cpu", "--early-stopping 5 has no effect in 2 epochs"),
        ({"early_stopping": 1, "warmup_epochs": 0.5}, "cpu", ""),
        ({"cpu_kernels": "xla"}, "cpu", ""),
    ],
)
def test_an_option_without_an_effect_on_this_machine_is_reported(changes, platform, line, data_dir, capsys):
    device = types.SimpleNamespace(platform=platform)
    report_unused(make_config(data_dir, "run", **changes), [device], STEPS)  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().out.strip() == line


def test_more_training_images_than_validation_leaves(data_dir, tmp_path):
    """A share: it is known when the data has been read. Nothing is written."""
    with pytest.raises(ConfigError, match="--train-images 50 is more than the 26 that --validation leaves"):
        fit(make_config(data_dir, tmp_path / "run", train_images=50, validation=0.5))
    assert not (tmp_path / "run").exists()


def test_several_decays_in_one_step_multiply():
    config = OptimConfig(1.0, "step", decay_epochs=(1.0, 1.01, 2.0), decay_factor=0.5)
    schedule = make_schedule(config, 3, 3)
    assert [np.asarray(schedule(step)).item() for step in (2, 3, 5, 6)] == pytest.approx([1.0, 0.25, 0.25, 0.125])


# --- giving up


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(data_dir, tmp_path):
    """The rate goes up a billion times in the second epoch; one line, and the first epoch stays."""
    config = make_config(data_dir, tmp_path / "run", epochs=3, schedule="step", decay_epochs=(1.0,), decay_factor=1e30)
    with pytest.raises(TrainingError, match="has diverged; start again with a lower learning rate") as caught:
        fit(config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(
        f"; or continue from the checkpoint of step {STEPS}: "
        f"--resume --run-dir {tmp_path / 'run'} --override --learning-rate 0.005"
    )
    assert kept(tmp_path / "run") == [STEPS]
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == [1]
    assert np.isfinite(resnet_jax.load(tmp_path / "run")(make_splits().test.images)).all()


def test_a_run_that_diverges_at_the_last_step_of_an_epoch(data_dir, tmp_path):
    """The epoch's losses are all finite, what the update leaves is not: nothing of it is kept."""
    one_step = make_config(data_dir, tmp_path / "run", train_images=BATCH, warmup_epochs=0.0, learning_rate=1e38)
    with pytest.raises(TrainingError, match="diverged") as caught:
        fit(one_step)
    assert "--resume" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_inside_an_epoch(data_dir, tmp_path):
    """A checkpoint is due after every step, and the loss is a step late to tell."""
    config = make_config(data_dir, tmp_path / "run", checkpoint_minutes=1e-9, warmup_epochs=0.0, learning_rate=1e38)
    with pytest.raises(TrainingError, match="the weights of step 1 are not finite: training has diverged"):
        fit(config)
    assert not (tmp_path / "run").exists()


def test_checkpoints_inside_an_epoch_change_nothing(one, data_dir, tmp_path):
    fit(make_config(data_dir, tmp_path / "run", devices=1, checkpoint_minutes=1e-9))
    assert final(tmp_path / "run") == final(one.run_dir)
    assert kept(tmp_path / "run") == [2 * STEPS - 1, 2 * STEPS]  # without a validation part the latest two


def test_two_processes_do_not_share_a_folder(data_dir, tmp_path):
    """A lock of the operating system: another process's is held in test_resume.py."""
    with rundir.hold(tmp_path / "run"):
        rundir.write_config(tmp_path / "run", make_config(data_dir, tmp_path / "run"))
        before = made.snapshot(tmp_path / "run")
        with pytest.raises(CheckpointError, match="another process is training into this folder"):
            fit(make_config(data_dir, tmp_path / "run", resume=True))
        assert made.snapshot(tmp_path / "run") == before
    assert len(fit(make_config(data_dir, tmp_path / "run", resume=True)).history) == 2


def test_it_runs_outside_the_main_thread(data_dir, tmp_path):
    """Where no signal handler can be set."""
    results = []
    config = make_config(data_dir, tmp_path / "run", epochs=1)
    thread = threading.Thread(target=lambda: results.append(fit(config)))
    thread.start()
    thread.join()
    assert len(results[0].history) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "tiny_wide"}, "has --arch tiny, not tiny_wide"),
        ({"seed": 1}, "has --seed 0, not 1"),
        ({"batch_size": 8}, "has --batch-size 16, not 8"),
        ({"learning_rate": 0.1}, "has --learning-rate 0.05, not 0.1"),
        ({"flip": False}, "has --flip True, not False"),
        ({"sync_batch_norm": False}, "has --sync-batch-norm True, not False"),
        ({"train_images": 48}, "has --train-images 0, not 48"),
    ],
)
def test_a_run_does_not_become_another(one, data_dir, changes, message):
    before = made.snapshot(one.run_dir)
    with pytest.raises(ConfigError, match=message):
        fit(make_config(data_dir, one.run_dir, resume=True, **changes))
    assert made.snapshot(one.run_dir) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("{", "Expecting property name"),
        ("[]", "[] is not a JSON object of options"),
        ("null", "None is not a JSON object of options"),
        ("{}", "it has no entry 'data'"),
        ('{"arch": "tiny"}', "it has no entry 'data'"),
        (json.dumps({"data": 1, "optim": 2}), "1 is not a JSON object of options"),
        (json.dumps({"data": {}, "optim": {}, "run": {}, "colour": 1}), "unknown options: colour"),
        (json.dumps({"data": {"datasett": "mnist"}, "optim": {}, "run": {}}), "unknown options: datasett"),
        (json.dumps({"data": {}, "optim": {}, "run": {}, "overrides": 3}), "overrides is not a list"),
        (json.dumps({"data": {}, "optim": {}, "run": {}, "epochs": "3"}), "epochs (--epochs) 3: give a whole number"),
    ],
)
def test_a_folder_whose_config_cannot_be_read(data_dir, tmp_path, content, reason):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: it does not hold a valid config") as caught:
        fit(make_config(data_dir, tmp_path / "run", resume=True))
    assert "\n" not in str(caught.value)
    assert f"({reason}" in str(caught.value)


def test_nothing_is_left_of_sums(one):
    with Checkpoints(one.run_dir, read_only=True) as checkpoints:
        assert Sums(**checkpoints.restore_meta(2 * STEPS)["sums"]) == Sums()
    assert without_timings(one.history) == final(one.run_dir)[-1]
