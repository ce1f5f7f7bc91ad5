"""Runs with averages, other optimizers, sharpness-aware minimisation and parts: kept, resumed, read and grown."""

import jax
import made
import numpy as np
import optax
import pytest
from made import final, fit_stopped_at, make_config, make_splits
from thorough import thorough_except

import resnet_jax
from resnet_jax import fit, load
from resnet_jax.data import ImageDataset
from resnet_jax.errors import ConfigError
from resnet_jax.models import create_model

NO_MOMENTUM = {"momentum": 0.0, "nesterov": False}
RUNS = {
    "ema": {"ema": 0.9, "label_smoothing": 0.1, "clip_norm": 0.5},
    "lookahead": {"lookahead": 4, "lookahead_schedule": "fading", "bias_lr_factor": 64.0, "schedule": "linear"},
    "adamw": {"optimizer": "adamw", "accumulate": 2, "ema": 0.9, **NO_MOMENTUM},
    "muon": {"optimizer": "muon", "sam": 0.05, "lookahead": 5, "schedule": "one_cycle"},
}


def same(mine, theirs) -> None:
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(mine), jax.device_get(theirs))


@pytest.mark.parametrize("name", thorough_except(RUNS, "lookahead"))  # ema: test_a_run_that_grows
def test_a_run_that_is_stopped_and_resumed_has_the_same_bits(name, data_dir, tmp_path):
    """Inside an epoch. The predictor of a run has the averaged weights, which its last row measured."""
    result = fit(make_config(data_dir, tmp_path / "a", **RUNS[name]))
    config = make_config(data_dir, tmp_path / "b", **RUNS[name])
    assert fit_stopped_at(4, config) == 4
    fit(made.change(config, resume=True))
    assert final(tmp_path / "b") == final(tmp_path / "a")
    predictor = load(tmp_path / "a")
    averages = result.state.averages
    same(result.variables, averages)
    same(predictor.variables, result.variables)
    kernels = (np.asarray(tree["head"]["kernel"]) for tree in (averages["params"], result.state.params))
    assert np.any(np.not_equal(*kernels))
    images, labels = make_splits().test
    accuracy = (predictor(images).argmax(1) == labels).mean()
    assert result.history[-1]["test_accuracy"] == pytest.approx(accuracy)


def test_the_loss_of_the_test_part_is_plain(data_dir, tmp_path):
    """With label smoothing the training loss alone is smoothed: it is larger in the first epoch of the same weights."""
    changes = {"epochs": 1, "learning_rate": 0.0}
    plain = fit(make_config(data_dir, tmp_path / "a", **changes)).history[0]
    smooth = fit(make_config(data_dir, tmp_path / "b", label_smoothing=0.5, **changes)).history[0]
    assert smooth["test_loss"] == plain["test_loss"]
    assert smooth["train_loss"] != plain["train_loss"]


def test_a_run_that_grows(data_dir, tmp_path):
    """The averages get the new block too. Resumed after it, a run has the same bits."""
    changes = RUNS["ema"] | {"grow": "2:2"}
    result = fit(make_config(data_dir, tmp_path / "a", **changes))
    assert "block2" in result.variables["params"]["stage2"]
    assert "block2" in result.variables["batch_stats"]["stage2"]
    config = make_config(data_dir, tmp_path / "b", **changes)
    fit_stopped_at(4, config)
    fit(made.change(config, resume=True))
    assert final(tmp_path / "b") == final(tmp_path / "a")
    same(load(tmp_path / "a").variables, result.variables)


def test_a_run_without_averages_cannot_continue_with_them(data_dir, tmp_path):
    fit(make_config(data_dir, tmp_path / "run", epochs=1))
    with pytest.raises(ConfigError, match=r"has --ema 0.0, not 0.9, which --override cannot change"):
        fit(make_config(data_dir, tmp_path / "run", ema=0.9, resume=True, override=True))


def test_parts_that_do_not_fit_are_refused_before_anything_is_written(data_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"accumulate \(--accumulate\) 3: a device has 8 images .*; use 2"):
        fit(make_config(data_dir, tmp_path / "run", accumulate=3))
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_fit_of_a_trainer(tmp_path):
    """Its folder has the averages; other ones are refused on resume."""
    splits = make_splits()
    data = ImageDataset(splits.train, test=splits.test, class_names=tuple("abcd"))
    model = create_model(made.NETS[0], 4)

    def trainer(averaging, **changes):
        return resnet_jax.Trainer(
            max_epochs=2,
            batch_size=16,
            devices=2,
            optimizer=optax.adamw(1e-2),
            averaging=averaging,
            progress=False,
            run_dir=tmp_path / "run",
            report=False,
            **changes,
        )

    first = trainer(resnet_jax.Ema(0.9), sam=0.05, accumulate=2)
    result = first.fit(model, data)
    same(load(tmp_path / "run", model).variables, result.variables)
    assert data.test is not None
    sums = first.evaluate(model, result.variables, data.test)
    assert sums.mean_loss == pytest.approx(result.history[-1]["test_loss"], rel=1e-5)
    with pytest.raises(ConfigError, match=r"has averaging 'Ema\(decay=0.9\)', not 'Lookahead\("):
        trainer(resnet_jax.Lookahead(), resume=True).fit(model, data)
