"""Runs of airbench: the whitened kernel is that of the training images and stays; options without an effect."""

import jax
import numpy as np
import pytest
from made import STEPS, change, final, fit_stopped_at, make_config, make_splits
from thorough import thorough_except

from resnet_jax import fit, load
from resnet_jax.errors import ConfigError, InteropError
from resnet_jax.interop import to_torch
from resnet_jax.models import layer_summary, whitening
from resnet_jax.runs import grow_run, open_weights
from resnet_jax.runs.checks import check
from resnet_jax.runs.effects import check_made

OPTIONS = {"arch": "airbench", "width": 0.125, "image_size": 10, "batch_norm_momentum": 0.6, "dirac_init": True}
OPTIONS |= {"whiten": True}


def test_the_kernel_is_whitened_and_stays(whole):
    predictor = load(whole)
    images = jax.device_put(make_splits().train.images)
    expected = whitening([predictor.preprocess.evaluate(images)])["params"]["stem"]["conv"]
    stem = jax.device_get(predictor.variables["params"]["stem"]["conv"])
    np.testing.assert_allclose(stem["kernel"], expected["kernel"], rtol=1e-5, atol=1e-5)
    assert np.abs(stem["bias"]).max() > 1e-6  # the bias was trained
    assert predictor.model.norm.keywords == {"momentum": 0.6}


@pytest.mark.thorough
def test_a_stopped_run_ends_as_the_whole_one(whole, data_dir, tmp_path):
    config = make_config(data_dir, tmp_path / "run", **OPTIONS)
    fit_stopped_at(STEPS + 1, config)
    fit(change(config, resume=True))
    assert final(tmp_path / "run") == final(whole)


def test_the_run_is_weights_and_neither_grows_nor_converts(whole, tmp_path):
    weights = open_weights(whole)
    assert weights.arch == "airbench"
    assert weights.options == {"width": 0.125}
    with pytest.raises(InteropError, match="airbench: its weights cannot be read from PyTorch"):
        to_torch(weights.variables, weights.arch, **weights.options)
    with pytest.raises(ConfigError, match="airbench has no residual blocks"):
        grow_run(whole, tmp_path / "grown", 1)
    assert not (tmp_path / "grown").exists()
    assert layer_summary(load(whole).model, (1, 10, 10, 1)).parameters == 40 + 9 * (64 + 64 + 256 + 3 * 1024) + 272


@pytest.mark.parametrize("arch", thorough_except(("airbench", "tiny"), "airbench"))
def test_the_momentum_changes_the_running_averages_alone(arch, data_dir, tmp_path):
    """One step from the same state: the averages keep another share of the old values, which are 0 and 1."""
    options = {"epochs": 1, "batch_size": 52, "devices": 1, "arch": arch, "image_size": 10, "width": 0.125}
    first, second = (
        fit(make_config(data_dir, tmp_path / str(m), batch_norm_momentum=m, warmup_epochs=0.0, **options))
        for m in (0.9, 0.6)
    )
    jax.tree.map(np.testing.assert_array_equal, first.variables["params"], second.variables["params"])
    for old, new in zip(
        *(jax.tree.leaves_with_path(run.variables["batch_stats"]) for run in (first, second)), strict=True
    ):
        start = 0.0 if old[0][-1].key == "mean" else 1.0
        np.testing.assert_allclose((new[1] - start) / 4, old[1] - start, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_norm_momentum": 1.0}, "1.0 must be at least 0 and below 1"),
        ({"batch_norm_momentum": -0.1}, "-0.1 must be at least 0 and below 1"),
        ({"arch": "airbench", "grow": "2:1"}, "--grow 2:1: airbench has no residual blocks"),
        ({"arch": "airbench", "image_size": 8}, "image size 8x8 is too small"),
        ({"arch": "tiny", "whiten": True}, "--whiten is for airbench; tiny has no such first convolution"),
        (
            {"arch": "airbench", "whiten": True, "pretrained": "w", "image_size": 9},
            "--whiten is for a network that starts untrained",
        ),
        ({"dirac_init": True, "pretrained": "w"}, "--dirac-init is for a network that starts untrained"),
    ],
)
def test_invalid_configs_are_refused(data_dir, tmp_path, changes, says):
    config = make_config(data_dir, tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match=says):
        check_made(check(config))
