"""Training that starts from converted weights, whole or the head alone, and the options of a run's network."""

import dataclasses

import jax
import made
import numpy as np
import optax
import pytest
from jax import numpy as jnp
from made import make_config, make_splits

from resnet_jax import create_model, fit, load
from resnet_jax.data.augment import Preprocess
from resnet_jax.errors import UserError
from resnet_jax.interop import Weights, save_weights
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.config import Config, ModelConfig, from_dict
from resnet_jax.training.parallel import replicate, shard
from resnet_jax.training.state import create_state, everything_but_head
from resnet_jax.training.step import Dataset, make_train_steps

WITHOUT_STATE = {"epochs": 1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "warmup_epochs": 0.0}


def variables(arch="tiny", classes=4, channels=1, seed=7, **options):
    """Weights that no run starts from by itself, and statistics away from 0 and 1."""
    model = create_model(arch, classes, **options)
    held = jax.device_get(model.init(jax.random.key(seed), jnp.zeros((1, 16, 16, channels))))
    return held | {
        "batch_stats": jax.tree.map(lambda leaf: leaf * np.float32(1.5) + np.float32(0.1), held["batch_stats"])
    }


def keep(folder, held, arch="tiny", **options):
    save_weights(folder, Weights(arch, options, held))
    return str(folder)


def final_variables(run_dir, like):
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        return checkpoints.restore_variables(checkpoints.latest() or 0, like)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_starts_from_the_weights(data_dir, tmp_path):
    """With a rate of 0 it ends there too; the statistics go on from theirs."""
    held = variables()
    config = make_config(data_dir, tmp_path / "run", learning_rate=0.0, pretrained=keep(tmp_path / "w", held))
    fit(made.change(config, **WITHOUT_STATE))
    end = final_variables(tmp_path / "run", held)
    assert_same(end["params"], held["params"])
    assert not np.array_equal(end["batch_stats"]["stem"]["bn"]["mean"], held["batch_stats"]["stem"]["bn"]["mean"])


def test_a_frozen_trunk_stays_to_the_bit(data_dir, tmp_path, capsys):
    """Weight decay and momentum do not move it, and its batch norms keep their statistics; the head learns."""
    held = variables()
    config = make_config(data_dir, tmp_path / "run", freeze=True, pretrained=keep(tmp_path / "w", held))
    fit(config)
    end = final_variables(tmp_path / "run", held)
    for part in ("stem", "stage1", "stage2"):
        assert_same(end["params"][part], held["params"][part])
    assert_same(end["batch_stats"], held["batch_stats"])
    assert np.abs(end["params"]["head"]["kernel"] - held["params"]["head"]["kernel"]).max() > 1e-3
    assert load(tmp_path / "run")(make_splits().test.images).shape == (made.NUM_TEST, 4)


def test_a_frozen_step_is_logistic_regression():
    """On the features that the network has in evaluation; the optimizer knows the head alone."""
    model, held = create_model("tiny", 4, axis_name="batch"), variables()
    optimizer, splits, devices = optax.sgd(0.1, momentum=0.9), make_splits(), jax.local_devices()[:2]
    state = create_state(model, optimizer, (8, 8, 1), freeze=everything_but_head(held["params"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 16 * 4 + 4
    state = replicate(state.replace(**held), devices)
    rows = np.arange(16, dtype=np.int32)
    data = replicate(Dataset.of(splits.train.images, splits.train.labels), devices)
    steps = make_train_steps(Preprocess((8, 8)), devices)
    end, metrics = steps(1)(state, data, shard(rows.reshape(2, 1, 8), devices), np.int32(0))

    images, labels = splits.train.images[:16].astype(np.float32) / 255, splits.train.labels[:16]
    _, taken = model.apply(held, images, capture_intermediates=True, mutable=["intermediates"])
    features = np.asarray(taken["intermediates"]["stage2"]["__call__"][0], np.float64).mean((1, 2))
    kernel, bias = (np.asarray(held["params"]["head"][name], np.float64) for name in ("kernel", "bias"))
    logits = features @ kernel + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (probabilities - np.eye(4)[labels]) / 16
    np.testing.assert_allclose(end.params["head"]["kernel"], kernel - 0.1 * features.T @ error, atol=1e-6)
    np.testing.assert_allclose(end.params["head"]["bias"], bias - 0.1 * error.sum(0), atol=1e-6)
    np.testing.assert_allclose(metrics.loss, -np.log(probabilities[np.arange(16), labels]).sum(), rtol=1e-5)


def test_an_rgb_stem_is_folded_and_another_head_is_new(data_dir, tmp_path):
    held, own = variables(classes=9, channels=3), variables()
    config = make_config(data_dir, tmp_path / "run", learning_rate=0.0, pretrained=keep(tmp_path / "w", held))
    fit(made.change(config, num_classes=4, **WITHOUT_STATE))
    end = final_variables(tmp_path / "run", own)["params"]
    kernel = held["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(end["stem"]["conv"]["kernel"], kernel.sum(2, keepdims=True))
    assert_same(end["stage2"], held["params"]["stage2"])
    assert end["head"]["kernel"].shape == (16, 4)


def test_the_options_of_a_network_are_a_runs(data_dir, tmp_path):
    """All of them train, are kept in the run's folder, and come back with load."""
    options = {"width": 0.5, "zero_init": True, "squeeze_excitation": True, "stochastic_depth": 0.5, "remat": True}
    result = fit(make_config(data_dir, tmp_path / "run", epochs=1, **options))
    predict = load(result.run_dir)
    assert dataclasses.asdict(predict.config.model).items() >= options.items()
    assert predict.variables["params"]["stage2"]["block1"]["conv1"]["kernel"].shape == (3, 3, 32, 8)
    assert "se" in predict.variables["params"]["stage1"]["block1"]
    assert np.isfinite(predict(make_splits().test.images)).all()


def test_bad_weights_are_told_before_anything_is_written(data_dir, tmp_path):
    good, wide = keep(tmp_path / "w", variables()), keep(tmp_path / "wide", variables(width=0.5), width=0.5)
    standard = keep(tmp_path / "standard", variables("resnet20", stem="standard"), "resnet20")
    cases = [
        ({"pretrained": str(tmp_path / "none")}, ["there is no such file or folder"]),
        ({"pretrained": good, "arch": "tiny_wide"}, ["holds tiny", "--arch tiny"]),
        ({"pretrained": wide}, ["does not fit", "batch_stats/stage1/block1", "more", "--width"]),
        ({"pretrained": standard, "arch": "resnet20"}, ["params/stem/conv/kernel", "--stem"]),
        ({"pretrained": good, "squeeze_excitation": True}, ["params/stage1/block1/se/fc1/bias"]),
        ({"freeze": True}, ["--freeze", "--pretrained"]),
        ({"num_classes": 5}, ["--num-classes 5", "made has 4"]),
        ({"width": -1.0}, ["width -1.0"]),
        ({"stochastic_depth": 2.0}, ["stochastic_depth 2.0"]),
        ({"arch": "resnext50_32x4d", "image_size": 32, "width": 0.1}, ["groups 32 must divide"]),
    ]
    for changes, says in cases:
        with made.compilations() as programs, pytest.raises(UserError) as error:
            fit(make_config(data_dir, tmp_path / "run", **changes))
        message = str(error.value)
        assert "\n" not in message
        assert all(part in message for part in says), message
        assert not programs
        assert not (tmp_path / "run").exists()


def test_a_run_of_before_there_were_options_goes_on():
    """Its config.json has no part model."""
    values = dataclasses.asdict(Config())
    del values["model"]
    assert from_dict(values) == Config(model=ModelConfig())
