"""Trainer with a run folder: what it keeps, how it resumes, and a folder of pictures on the command line."""

import dataclasses
import json
import pickle
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from PIL import Image

import resnet_jax
from resnet_jax import cli
from resnet_jax.errors import CallbackError, CheckpointError, ConfigError
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.training.averaging import fading_alpha

RNG = np.random.default_rng(0)
LABELS = (np.arange(60) % 3).astype(np.int32)
IMAGES = np.clip(RNG.normal(60, 20, (60, 8, 9, 3)) + 60 * LABELS[:, None, None, None], 0, 255).astype(np.uint8)
DATA: Any = resnet_jax.data.from_arrays(IMAGES, LABELS, class_names=("a", "b", "c"), validation=12, test=12)


class Own(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), 2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x)).mean((1, 2))
        return nn.Dense(3)(x)


def trainer(run_dir, **changes) -> resnet_jax.Trainer:
    held = {"max_epochs": 3, "batch_size": 12, "optimizer": optax.adamw(1e-2), "devices": 1}
    held |= {"progress": False, "report": False}
    return resnet_jax.Trainer(**{**held, "run_dir": run_dir, **changes})


def weights(result) -> list[np.ndarray]:
    return jax.tree.leaves(jax.device_get(result.variables))


FADING = resnet_jax.Lookahead(2, fading_alpha(2, 12))


class RaiseAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, loop):
        if loop.step == self.step:
            raise RuntimeError("my logger broke")


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = trainer(None).fit(Own(), DATA)
    assert list(tmp_path.iterdir()) == []
    assert len(result.history) == 3


def test_a_resumed_fit_has_the_weights_of_an_undisturbed_one(tmp_path):
    """A callback raises in the second epoch: the checkpoint of the first is good, and the fit continues from it."""
    whole = trainer(tmp_path / "whole").fit(Own(), DATA)
    with pytest.raises(CallbackError, match="callback RaiseAt: on_step_end raised RuntimeError: my logger broke"):
        trainer(tmp_path / "run", callbacks=[RaiseAt(5)]).fit(Own(), DATA)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1]
    resumed: Any = trainer(tmp_path / "run", resume=True).fit(Own(), DATA)
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert resumed.run_dir == tmp_path / "run"
    assert [row["validation_loss"] for row in whole.history] == [row["validation_loss"] for row in resumed.history]


def test_load_needs_the_model_and_gives_the_best_checkpoint(tmp_path):
    result = trainer(tmp_path / "run", normalize=(DATA.mean, DATA.std)).fit(Own(), DATA)
    with pytest.raises(CheckpointError, match="pass its model too"):
        resnet_jax.load(tmp_path / "run")
    predictor = resnet_jax.load(tmp_path / "run", Own())
    best = max(result.history, key=lambda row: (row["validation_accuracy"], row["epoch"]))
    assert predictor.step == best["step"]
    accuracy = (predictor(DATA.test.images).argmax(1) == DATA.test.labels).mean()
    assert accuracy == best["test_accuracy"]
    assert predictor.class_names == ("a", "b", "c")
    again = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(again(DATA.test.images), predictor(DATA.test.images))


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"resume": False}, DATA, "exists and is not empty"),
        ({"batch_size": 6}, DATA, "has batch_size 12, not 6"),
        ({"seed": 1}, DATA, "has seed 0, not 1"),
        ({"normalize": (DATA.mean, DATA.std)}, DATA, "has normalize"),
        ({"freeze": ("Conv_0",)}, DATA, "has freeze"),
        ({"sizes": [(2, 6)]}, DATA, r"has sizes \[\], not \[\[2, \[6, 6\]\]\]; give the same, or a new run_dir"),
        ({"sam": 0.05}, DATA, "has sam 0.0, not 0.05"),
        ({"accumulate": 2}, DATA, "has accumulate 1, not 2"),
        ({"sync_batch_norm": False}, DATA, "has sync_batch_norm True, not False"),
        ({"averaging": resnet_jax.Ema(0.9)}, DATA, r"has averaging '', not 'Ema\(decay=0.9\)'"),
        ({"max_epochs": 2}, DATA, "the run has begun epoch 3"),
        ({}, resnet_jax.data.from_arrays(IMAGES[::-1], LABELS, validation=12, test=12), "was trained on other data"),
        ({"run_dir": None}, DATA, "resume=True needs run_dir"),
    ],
)
def test_a_run_does_not_become_another(tmp_path_factory, finished, changes, data, message):
    with pytest.raises(ConfigError, match=message):
        trainer(**{"run_dir": finished, "resume": True, **changes}).fit(Own(), data)


@pytest.mark.parametrize(
    ("averaging", "others", "values"),
    [
        (resnet_jax.Ema(0.9), (resnet_jax.Ema(0.99), resnet_jax.Lookahead(2)), "decay=0.9"),
        (FADING, (dataclasses.replace(FADING, every=3), resnet_jax.Lookahead(2)), "every=2, alpha=function"),
    ],
)
def test_the_values_of_an_averaging_are_compared(tmp_path, monkeypatch, averaging, others, values):
    """An earlier version kept the name of the class alone: of its runs, the class is compared."""
    name, path = type(averaging).__name__, tmp_path / "run"
    trainer(path, averaging=averaging, max_epochs=1).fit(Own(), DATA)
    for other in others:
        with pytest.raises(ConfigError) as caught:
            trainer(path, resume=True, averaging=other).fit(Own(), DATA)
        assert f"has averaging '{name}({values})', not '{type(other).__name__}(" in str(caught.value)
    read = Checkpoints.restore_meta

    def of_earlier_version(self, step):
        meta = read(self, step)
        held = {key: value for key, value in meta["trainer"].items() if key not in ("sizes", "sam", "accumulate")}
        return meta | {"trainer": held | {"averaging": name}}

    monkeypatch.setattr(Checkpoints, "restore_meta", of_earlier_version)
    with pytest.raises(ConfigError, match=f"has averaging '{name}', not ''"):
        trainer(path, resume=True).fit(Own(), DATA)
    assert len(trainer(path, resume=True, max_epochs=2, averaging=others[0]).fit(Own(), DATA).history) == 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("trainer") / "run"
    trainer(path).fit(Own(), DATA)
    return path


# --- a folder of pictures on the command line


@pytest.fixture
def pictures(tmp_path):
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = tmp_path / "pictures" / f"class {label}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "pictures"


FLAGS = "--arch tiny --epochs 2 --batch-size 12 --devices 1 --precision float32 --stem small"
FLAGS += " --schedule constant --run-dir run --no-report"


def test_a_folder_of_pictures_from_the_command_to_a_prediction(pictures, tmp_path, capsys):
    words = [*FLAGS.split(), "--data-folder", str(pictures), "--normalize", "--flip"]
    assert cli.main([*words, "--early-stopping", "1"]) == 0
    out = capsys.readouterr().out
    assert "validation accuracy" in out
    predictor = resnet_jax.load("run")
    assert predictor.class_names == ("class 0", "class 1", "class 2")
    assert predictor.image_shape == (8, 9, 3)
    data: Any = resnet_jax.data.from_folder(pictures, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["validation_accuracy"], row["epoch"]))
    assert (predictor(data.test.images).argmax(1) == data.test.labels).mean() == best["test_accuracy"]
    assert cli.main(["--resume", "--run-dir", "run", "--epochs", "3"]) == 0
    assert "resumed from step 8" in capsys.readouterr().out


def test_other_pictures_are_not_the_same_run(pictures, capsys):
    words = [*FLAGS.split(), "--data-folder", str(pictures)]
    assert cli.main(words) == 0
    Image.fromarray(IMAGES[0]).save(pictures / "class 0" / "one more.png")
    assert cli.main(["--resume", "--run-dir", "run", "--epochs", "3"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the pictures in --data-folder" in line
    assert "are not those that the run was trained on" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data-folder nowhere", "nowhere"),
        ("--data-folder empty", "empty"),
        ("--data-folder pictures --dataset mnist", "--dataset and --data-folder"),
        ("--data-folder pictures --num-classes 4", "--num-classes 4: "),
        ("--data-folder pictures --batch-size 64", "64 is more than the"),
        ("--data-folder pictures --source-dir x", "--source-dir is for named data sets"),
        ("--data-folder pictures --train-images 9", "--train-images is for named data sets"),
        ("--skip-unreadable", "--skip-unreadable is for pictures of your own"),
    ],
)
def test_bad_input(pictures, tmp_path, capsys, flags, message):
    (tmp_path / "empty").mkdir()
    assert cli.main([*FLAGS.split(), *flags.split()]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert message in err[-1]
    assert not (tmp_path / "run").exists()


def test_a_folder_with_its_own_parts(pictures, capsys):
    for part in ("train", "val", "test"):
        (pictures / part).mkdir()
    for i, folder in enumerate(sorted(pictures.glob("class *"))):
        files = sorted(folder.iterdir())
        for part, some in (("train", files[:14]), ("val", files[14:17]), ("test", files[17:])):
            (pictures / part / f"class {i}").mkdir()
            for file in some:
                file.rename(pictures / part / f"class {i}" / file.name)
        folder.rmdir()
    assert cli.main([*FLAGS.split(), "--data-folder", str(pictures)]) == 0
    assert "42 training, 9 validation and 9 test images" in capsys.readouterr().out


def test_rows_hold_numbers_of_numpy_and_jax(tmp_path):
    class Adds:
        def on_epoch_end(self, loop):
            loop.row["mine"] = np.float32(0.5)

    trainer(tmp_path / "run", callbacks=[Adds()], max_epochs=1, normalize=(np.zeros(3), np.ones(3))).fit(Own(), DATA)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["mine"] == 0.5


def test_early_stopping_without_a_validation_part(data_dir, tmp_path, capsys):
    assert cli.main([*FLAGS.split(), "--dataset", "made", "--data-dir", str(data_dir), "--early-stopping", "2"]) == 2
    assert "--early-stopping 2: the data has no validation part; add --validation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unreadable_picture_is_named_or_skipped(pictures, capsys):
    (pictures / "class 1" / "notes.png").write_text("no picture")
    assert cli.main([*FLAGS.split(), "--data-folder", str(pictures)]) == 2
    assert "notes.png" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main([*FLAGS.split(), "--data-folder", str(pictures), "--skip-unreadable"]) == 0
    assert "notes.png" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_config_with_callbacks_of_ones_own(pictures, tmp_path):
    seen = []

    class Logger:
        def on_epoch_end(self, loop):
            seen.append(loop.row["validation_accuracy"])

    config = resnet_jax.Config("tiny", epochs=1, batch_size=12, stem="small")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, data_folder=str(pictures)),
        run=dataclasses.replace(config.run, run_dir=str(tmp_path / "run"), devices=1, report=False),
    )
    result = resnet_jax.fit(config, callbacks=[Logger()])
    assert seen == [result.history[0]["validation_accuracy"]]
