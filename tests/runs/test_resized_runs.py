"""--sizes and --flip-averaging in runs: resumed to the bit, in the rows, in `evaluate` and in the report."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from made import STEPS, change, final, fit_stopped_at, make_config, read_rows
from thorough import thorough_except

from resnet_jax import fit, load
from resnet_jax.cli import command
from resnet_jax.errors import ConfigError
from resnet_jax.runs import gathered
from resnet_jax.runs.build import load_data
from resnet_jax.runs.checks import check
from resnet_jax.runs.gathered import AUGMENTED, gather

OPTIONS = {"epochs": 3, "sizes": "1:6,3:8", "devices": 1, "flip_averaging": True, "image_size": 10}


@pytest.mark.parametrize("step", thorough_except((STEPS - 1, 2 * STEPS, 2 * STEPS + 1), 2 * STEPS + 1))
def test_a_stopped_run_ends_as_the_whole_one(whole, data_dir, tmp_path, step):
    """Inside the first epoch, before the size changes, and inside an epoch of another size."""
    config = make_config(data_dir, tmp_path / "run", **OPTIONS)
    assert fit_stopped_at(step, config) == step
    fit(change(config, resume=True))
    assert final(tmp_path / "run") == final(whole)


def test_the_rows_have_both_figures(whole, data_dir):
    """Those of the averaged probabilities of the predictor, which is the checkpoint of the last epoch."""
    row, predictor = read_rows(whole)[-1], load(whole)
    test = load_data(make_config(data_dir, whole)).test
    assert test is not None
    plain, mirrored = (predictor(images) for images in (test.images, test.images[:, :, ::-1]))
    assert row["test_accuracy"] == (plain.argmax(1) == test.labels).mean()
    mean = (plain + mirrored) / 2
    assert row["test_flip_accuracy"] == (mean.argmax(1) == test.labels).mean()
    assert row["test_flip_loss"] == pytest.approx(-np.log(mean[np.arange(len(mean)), test.labels]).mean(), rel=1e-4)


def test_evaluate_prints_both(whole, capsys):
    row = read_rows(whole)[-1]
    assert command(["evaluate", str(whole), "--flip-averaging"], "prog") == 0
    lines = capsys.readouterr().out.splitlines()
    (plain,) = [line for line in lines if line.startswith("test of made: accuracy")]
    assert f"accuracy {row['test_accuracy']:.4f}" in plain
    (line,) = [line for line in lines if line.startswith("with flip averaging: ")]
    assert f"accuracy {row['test_flip_accuracy']:.4f}" in line
    assert command(["evaluate", str(whole), "--flip-averaging", "--json"], "prog") == 0
    held = json.loads(capsys.readouterr().out)
    assert held["accuracy"] == row["test_accuracy"]
    assert held["flip_averaging"]["accuracy"] == row["test_flip_accuracy"]
    assert held["flip_averaging"]["loss"] == pytest.approx(row["test_flip_loss"], rel=1e-4)


def test_the_report_has_both(whole):
    report, evaluation = gather(whole)
    facts = {fact.label: fact.value for fact in report.facts}
    row = read_rows(whole)[-1]
    assert facts["Test accuracy"] == f"{100 * row['test_accuracy']:.2f} %"
    assert facts["With flip averaging"] == f"{100 * row['test_flip_accuracy']:.2f} %"
    assert evaluation is not None
    assert len(report.augmented) == 10


def test_the_report_shows_training_images_of_the_first_size(whole, monkeypatch):
    shapes = []
    monkeypatch.setattr(gathered, "data_uri", lambda picture: shapes.append(picture.shape) or "data:,")
    gather(whole)
    assert shapes[-AUGMENTED:] == [(6, 6, 1)] * AUGMENTED


def test_the_averaged_figure_chooses_nothing(data_dir, tmp_path):
    """With a validation part the best checkpoint is that of the plain validation accuracy."""
    run_dir: Path = tmp_path / "run"
    fit(make_config(data_dir, run_dir, validation=8, devices=1, flip_averaging=True, epochs=3))
    plain = make_config(data_dir, tmp_path / "plain", validation=8, devices=1, epochs=3)
    fit(plain)
    assert load(run_dir).step == load(tmp_path / "plain").step
    mine, others = (load(path).variables for path in (run_dir, tmp_path / "plain"))
    jax.tree.map(np.testing.assert_array_equal, mine, others)
    assert not any("validation_flip" in key for key in read_rows(run_dir)[-1])


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ("20", "is not EPOCH:SIZE"),
        ("1:6,2", "is not EPOCH:SIZE"),
        ("0:6", "--sizes 0:6: the size changes at epoch 1 to --epochs 2"),
        ("3:6", "--sizes 3:6: the size changes at epoch 1 to --epochs 2"),
        ("2:6,1:8", "sizes \\(--sizes\\): the epochs 2, 1 are out of order"),
        ("1:6,1:8", "the epochs 1, 1 are out of order"),
        ("1:5000", "--sizes 1:5000: use 1 to 4096 pixels"),
        ("1:2", "--sizes 1:2: image size 2x2 is too small"),
    ],
)
def test_invalid_sizes_are_refused(data_dir, tmp_path, sizes, says):
    with pytest.raises(ConfigError, match=says):
        check(make_config(data_dir, tmp_path / "run", sizes=sizes))


def test_too_many_sizes_are_refused(data_dir, tmp_path):
    sizes = ",".join(f"{i}:{20 + i}" for i in range(1, 10))
    with pytest.raises(ConfigError, match="a program is compiled for each size; give at most 8 sizes"):
        check(make_config(data_dir, tmp_path / "run", sizes=sizes, epochs=9))
